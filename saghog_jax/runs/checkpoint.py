"""Checkpoints of a run folder: complete training states, or only the parameters for the next stage.

Checkpoint N holds the state after N updates. N is also the position in the data, so that training
can continue from the checkpoint alone. `meta` names the kind of the model: `encoder` (only an
encoder, from published weights), `mae` (encoder and decoder) or `writer` (encoder and NetRVLAD).
"""

import contextlib
import errno
import hashlib
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
from saghog_jax.input_pipeline.errors import RunError, UserError, check_choice
from saghog_jax.runs.checksums import find_corruption, write_checksums
from saghog_jax.runs.older_configs import read_run_config
from saghog_jax.runs.train_state import TrainState
from saghog_jax.weights import packed

logger = logging.getLogger(__name__)

KINDS = ("encoder", "mae", "writer")
CHOICES = ("last", "best")
# Timeout of orbax in seconds: none, because its clock may jump. `distributed` ends processes that
# wait for a dead one.
_NEVER = 10**9
# Errors of the machine, not of the program, while files are written.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
# Kind of a checkpoint -> command that makes one, for messages.
_MADE_BY = {
    "encoder": "python -m saghog_jax.main --config=configs/convert.py",
    "mae": "python -m saghog_jax.main --config=configs/pretrain.py",
    "writer": "python -m saghog_jax.main --config=configs/finetune.py",
}


@dataclass
class Progress:
    """Results of the validations of a run, saved with its state.

    best, best_step: the best value of the monitored metric, and its checkpoint.
    waited: validations since then.
    finished: the run has stopped early and does not continue.
    """

    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    finished: bool = False


class Checkpoints:
    """The folder `checkpoints` of a run, open for writing; a context manager.

    Args:
      keep: number of the newest checkpoints that are kept. The best checkpoint is kept too.
      kind: one of `KINDS`.
      keep_every: one checkpoint in this many steps is kept too; 0: none.
    """

    def __init__(self, run_folder: Path, keep: int, kind: str, keep_every: int = 0) -> None:
        self._folder, self._kind = run_folder, kind
        self._step = 0
        self._kept = _Kept(keep, keep_every)
        # Errors of a write are raised here. asyncio would log them again, a page for each array.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._manager = ocp.CheckpointManager(
            (run_folder / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(
                    timeout_secs=_NEVER,
                    # Asynchronous creation has a fixed timeout of five minutes.
                    create_directories_asynchronously=False,
                    post_finalization_callback=self._before_naming,
                ),
            ),
        )

    def save(self, step: int, state: TrainState, progress: Progress) -> None:
        """Starts to write a checkpoint, which gets its name when it is complete.

        Raises:
          RunError: this checkpoint or the one before could not be written.
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
        """Raises errors of writing in the background since the last save.

        Raises:
          RunError: the last checkpoint could not be written.
        """
        with self._explained():
            self._manager.check_for_errors()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of checkpoint `step`, with the shardings of the abstract state `like`."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(like.variables),
                optimizer=ocp.args.StandardRestore({"step": like.step, "opt": like.opt_state}),
            ),
        )
        state = like.replace(step=restored.optimizer["step"], opt_state=restored.optimizer["opt"])
        return state.with_variables(restored.variables)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *unused: object) -> None:
        try:
            self.close()
        except RunError:
            # An error that ends the run is more important than a failed checkpoint.
            if kind is None:
                raise

    def close(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          RunError: the checkpoint could not be written.
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
            # The libraries mention a full disk deep in a long message.
            known = map(os.strerror, DISK_ERRORS)
            reason = next((name for name in known if name in text), text[:300])
            raise RunError(
                f"checkpoint {self._step} could not be written to {self._folder}: {reason}; the "
                f"last whole one is {newest_step(self._folder)}"
            ) from error


@dataclass
class _Kept:
    """Tells orbax which checkpoints are kept."""

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
    """Number (updates) of the newest complete checkpoint of a run; None if there is none."""
    return max(_steps(run_folder), default=None)


def _steps(run_folder: Path) -> list[int]:
    folder = run_folder / "checkpoints"
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def newest_undamaged(run_folder: Path, say: bool = True, move_away: bool = False) -> int | None:
    """The newest checkpoint whose files are unchanged; None if there is none.

    Args:
      run_folder: a folder that all processes see; only the main process reads the files.
      say: log damaged checkpoints, with the reason.
      move_away: move damaged checkpoints to the folder `damaged`; training makes them again.
    """
    newest = -1
    if distributed.is_main():
        for step in sorted(_steps(run_folder), reverse=True):
            reason = find_corruption(run_folder, step)
            if not reason:
                newest = step
                break
            if say:
                logger.warning(
                    f"checkpoint {step} in {run_folder} is damaged ({reason}): taking the one "
                    "before"
                )
            if move_away:
                _move_away(run_folder, step)
    newest = int(distributed.broadcast(np.int64(newest)))
    return None if newest < 0 else newest


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
    """The resolved config of a run, in today's form.

    Raises:
      UserError: the folder holds no run, or one that this version cannot read; the message names
        the remedy.
    """
    path = run_folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run_folder} holds no run (no config.json); make one with "
            f"`{_MADE_BY['mae']}` or `{_MADE_BY['writer']}`"
        )
    return ConfigDict(read_run_config(path))


def load_variables(
    run_folder: Path, kinds: Sequence[str], which: str = "last"
) -> tuple[dict, dict]:
    """The variables of a checkpoint, on the host, and its `meta`.

    Args:
      run_folder: a folder of pretrain, finetune or convert.
      kinds: kinds of checkpoints that the caller can use.
      which: `last` (the newest undamaged checkpoint) or `best` (by the monitored metric).

    Returns:
      `params` and the other collections of the model, numpy arrays; {"kind", "step", ...}.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it is of another kind.
    """
    check_choice("checkpoint", which, CHOICES)
    if packed.is_packed(run_folder):
        return _load_packed(run_folder, kinds, which)
    step = newest_undamaged(run_folder)
    if step is None:
        raise UserError(f"no checkpoint in {run_folder}; make one with {_commands(kinds)}")
    meta = read_meta(run_folder, step)
    _check_kind(run_folder, meta["kind"], kinds)
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
    with _without_remarks(), ocp.StandardCheckpointer() as reader:
        # With numpy arrays as the template, orbax restores numpy arrays on the host.
        like = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape),
            reader.metadata(place).item_metadata.tree,
        )
        return reader.restore(place, like), meta


def _load_packed(folder: Path, kinds: Sequence[str], which: str) -> tuple[dict, dict]:
    if which != "last":
        raise UserError(f"{folder} is a packed model, which has one checkpoint; take the last one")
    variables, kind = packed.load_model(folder)
    _check_kind(folder, kind, kinds)
    return variables, {"kind": kind, "step": 0, "progress": asdict(Progress())}


def _check_kind(run_folder: Path, kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise UserError(
            f"the checkpoint in {run_folder} is of kind {kind!r}, but this needs "
            f"{' or '.join(map(repr, kinds))}, which {_commands(kinds)} makes"
        )


def _commands(kinds: Sequence[str]) -> str:
    return " or ".join(f"`{_MADE_BY[kind]}`" for kind in kinds)


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Keeps orbax from warning that a part of a checkpoint has no metadata file of its own."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def params_digest(params: dict) -> str:
    """SHA-256 of the names, shapes and values of parameters; identifies a model."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(jax.device_get(leaf).tobytes())
    return digest.hexdigest()
