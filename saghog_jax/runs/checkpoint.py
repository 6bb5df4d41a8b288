"""Checkpoints of a run folder: whole training states, and parameters alone for the next stage.

A checkpoint N holds a state of N finished updates; the data position is N too, so nothing else is
needed to go on. Its `meta` names the kind, which says what the parameters can be used for:
`encoder` (that alone, from published weights), `mae` (encoder and decoder) or `writer` (encoder and
NetRVLAD).
"""

import contextlib
import errno
import hashlib
import importlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.devices.sharding import laid_like
from saghog_jax.input_pipeline.errors import RunError, UserError, check_choice
from saghog_jax.runs.checksums import find_corruption, write_checksums
from saghog_jax.runs.train_state import TrainState

KINDS = ("encoder", "mae", "writer")
CHOICES = ("last", "best")
# Orbax measures its patience by a clock that may jump: whoever waits for a dead process is stopped
# by `distributed`.
_NEVER = 10**9
# Errors of the machine, not of the program, when files are written.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EIO),
)
# What each stage that makes checkpoints is called on the command line, for messages.
_MADE_BY = {
    "encoder": "python -m saghog_jax.main --config=configs/convert.py",
    "mae": "python -m saghog_jax.main --config=configs/pretrain.py",
    "writer": "python -m saghog_jax.main --config=configs/finetune.py",
}


@dataclass
class Progress:
    """What a run has found out about itself; saved with its state.

    best, best_step: the best value of the monitored figure, and the checkpoint that has it.
    waited: evaluations since then.
    finished: the run has stopped early, and is not to go on.
    """

    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    finished: bool = False


class Checkpoints:
    """The `checkpoints` folder of one run, open for writing; a context manager.

    Args:
      keep: so many of the newest stay.
      kind: one of `KINDS`.
      keep_every: those of every so many steps stay too; 0 for none.

    The best checkpoint stays as well.
    """

    def __init__(self, run_folder: Path, keep: int, kind: str, keep_every: int = 0) -> None:
        self._folder, self._kind = run_folder, kind
        self._step = 0
        self._kept = _Kept(keep, keep_every)
        # What fails in a write is raised here; asyncio would tell it again, a page for each array.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._manager = ocp.CheckpointManager(
            (run_folder / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    timeout_secs=_NEVER,
                    # Waits for directories by the clock too, five minutes that cannot be changed.
                    create_directories_asynchronously=False,
                    post_finalization_callback=self._before_naming,
                ),
            ),
        )

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Starts to write a checkpoint; it counts only once it is whole.

        Raises:
          RunError: this one, or the one before, could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()
            self._step, self._kept.best = step, progress.best_step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(state.variables),
                    optimizer=ocp.args.StandardSave({"step": state.step, "opt": state.opt_state}),
                    meta=ocp.args.JsonSave(
                        {"kind": self._kind, "step": step, "progress": asdict(progress)}
                    ),
                ),
            )

    def check(self) -> None:
        """Raises what went wrong in the background since the last save.

        Raises:
          RunError: the last checkpoint could not be written.
        """
        with self._explained():
            self._manager.check_for_errors()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of checkpoint `step`, laid out as `like`, an abstract state with shardings."""
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(like.variables),
                optimizer=ocp.args.StandardRestore({"step": like.step, "opt": like.opt_state}),
            ),
        )
        state = like.replace(step=found.optimizer["step"], opt_state=found.optimizer["opt"])
        return state.with_variables(found.variables)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *unused: object) -> None:
        try:
            self.close()
        except RunError:
            # What ended the run matters more than a checkpoint that failed as well.
            if kind is None:
                raise

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          RunError: it could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.close()

    def _before_naming(self) -> None:
        if distributed.is_main():
            write_checksums(self._folder, self._step)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())
            # Of a full disk the libraries speak deep in a long message.
            known = map(os.strerror, DISK_ERRORS)
            reason = next((name for name in known if name in text), text[:300])
            raise RunError(
                f"checkpoint {self._step} could not be written to {self._folder}: {reason}; the "
                f"last whole one is {newest_step(self._folder)}"
            ) from error


@dataclass
class _Kept:
    """Which checkpoints stay, for orbax."""

    keep: int
    keep_every: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence, *, context: object) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = sorted(steps)[-self.keep :]
        return [
            step in newest
            or step == self.best
            or bool(self.keep_every and step % self.keep_every == 0)
            for step in steps
        ]


def newest_step(run_folder: Path) -> int | None:
    """Finished updates of the newest complete checkpoint of a run; None where there is none."""
    return max(_steps(run_folder), default=None)


def _steps(run_folder: Path) -> list[int]:
    folder = run_folder / "checkpoints"
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def newest_undamaged(run_folder: Path, say: bool = True, move_away: bool = False) -> int | None:
    """The newest checkpoint whose files are those that were written.

    Args:
      run_folder: one that all processes see; the main one looks.
      say: damaged ones are said, with the reason.
      move_away: damaged ones are moved to the folder `damaged` beside, to be made again.
    """
    found = -1
    if distributed.is_main():
        for step in sorted(_steps(run_folder), reverse=True):
            reason = find_corruption(run_folder, step)
            if not reason:
                found = step
                break
            if say:
                print(
                    f"checkpoint {step} in {run_folder} is damaged ({reason}): taking the one "
                    "before"
                )
            if move_away:
                _move_away(run_folder, step)
    found = int(distributed.broadcast(np.int64(found)))
    return None if found < 0 else found


def _move_away(run_folder: Path, step: int) -> None:
    target = run_folder / "damaged"
    target.mkdir(exist_ok=True)
    number = len(list(target.iterdir()))
    (run_folder / "checkpoints" / str(step)).rename(target / f"{step}-{number}")


def read_meta(run_folder: Path, step: int) -> dict:
    """Kind, step and progress of a checkpoint."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore((run_folder / "checkpoints" / str(step) / "meta").resolve())


def read_config(run_folder: Path) -> ConfigDict:
    """The resolved config a run folder was made with; fields that are newer have their defaults.

    Raises:
      UserError: no such run; says which command makes one.
    """
    path = run_folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run_folder} holds no run (no config.json); make one with "
            f"`{_MADE_BY['mae']}` or `{_MADE_BY['writer']}`"
        )
    config = ConfigDict(json.loads(path.read_text()))
    _fill(config, importlib.import_module(f"saghog_jax.configs.{config.stage}").get_config())
    return config


def _fill(config: ConfigDict, defaults: ConfigDict) -> None:
    """Adds what only `defaults` has, in place."""
    for name, default in defaults.items():
        if name not in config:
            config[name] = default
        elif isinstance(default, ConfigDict):
            _fill(config[name], default)


def load_variables(
    run_folder: Path, kinds: Sequence[str], which: str = "last"
) -> tuple[dict, dict]:
    """The model of a checkpoint of a run, on the host, and the checkpoint's `meta`.

    Args:
      run_folder: a folder that pretrain or finetune wrote.
      kinds: the kinds of checkpoint the caller can use.
      which: `last` (the newest that is not damaged) or `best` (by the figure the run monitored).

    Returns:
      `params` and the model's other collections, as flax applies them, numpy arrays; and
      {"kind", "step", ...}.

    Raises:
      UserError: no checkpoint, or one of another kind.
    """
    check_choice("checkpoint", which, CHOICES)
    commands = " or ".join(f"`{_MADE_BY[kind]}`" for kind in kinds)
    step = newest_undamaged(run_folder)
    if step is None:
        raise UserError(f"no checkpoint in {run_folder}; make one with {commands}")
    meta = read_meta(run_folder, step)
    if meta["kind"] not in kinds:
        raise UserError(
            f"the checkpoint in {run_folder} is of kind {meta['kind']!r}, but this needs "
            f"{' or '.join(map(repr, kinds))}, which {commands} makes"
        )
    if which == "best":
        step = meta["progress"]["best_step"]
        if step is None:
            raise UserError(
                f"{run_folder} has no best checkpoint, because it was trained without "
                "config.validation; take the last one"
            )
        reason = find_corruption(run_folder, step)
        if reason:
            raise UserError(f"the best checkpoint {step} in {run_folder} is damaged ({reason})")
        meta = read_meta(run_folder, step)
    place = (run_folder / "checkpoints" / str(step) / "variables").resolve()
    with ocp.StandardCheckpointer() as reader:
        # Arrays of numpy are restored as such: nothing is laid on a device.
        like = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
            reader.metadata(place).item_metadata.tree,
        )
        return reader.restore(place, like), meta


def same_shapes(given: dict, wanted: dict) -> bool:
    """Whether two trees of arrays have the same names and shapes."""
    shapes = [jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (given, wanted)]
    return shapes[0] == shapes[1]


def taken(given: dict, wanted: dict, source: Path) -> dict:
    """The parameters `wanted`, their values from `given`, laid out as they are.

    Args:
      given: parameters on the host, such as {"encoder": ..., "decoder": ...}; may have more.
      wanted: placed parameters that are to be replaced.
      source: the run folder they come from, for messages.

    Raises:
      UserError: names or shapes differ.
    """
    for name, tree in wanted.items():
        if not same_shapes(given[name], tree):
            raise UserError(
                f"the {name} in {source} does not fit this config's; the model sizes must be those "
                f"of {source / 'config.json'}"
            )
    return laid_like({name: given[name] for name in wanted}, wanted)


def params_digest(params: dict) -> str:
    """SHA-256 over names, shapes and values of parameters: what identifies a model."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(jax.device_get(leaf).tobytes())
    return digest.hexdigest()
