"""Checkpoints of a run folder: whole training states, and parameters alone for the next stage.

A checkpoint N holds a state of N finished updates; the data position is N too, so nothing else is
needed to go on. Its `meta` names the kind, which says what the parameters can be used for:
`encoder` (that alone, from published weights), `mae` (encoder and decoder) or `writer` (encoder and
NetRVLAD).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from saghog_jax.train_state import TrainState

KINDS = ("encoder", "mae", "writer")
# What each stage that makes checkpoints is called on the command line, for messages.
_MADE_BY = {
    "encoder": "python -m saghog_jax.main --config=configs/convert.py",
    "mae": "python -m saghog_jax.main --config=configs/pretrain.py",
    "writer": "python -m saghog_jax.main --config=configs/finetune.py",
}


class Checkpoints:
    """The `checkpoints` folder of one run, open for writing; a context manager."""

    def __init__(self, run_folder: Path, keep: int, kind: str) -> None:
        self._kind = kind
        self._manager = ocp.CheckpointManager(
            (run_folder / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write a checkpoint; it counts only once it is whole."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                optimizer=ocp.args.StandardSave({"step": state.step, "opt": state.opt_state}),
                meta=ocp.args.JsonSave({"kind": self._kind, "step": step}),
            ),
        )

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

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def newest_step(run_folder: Path) -> int | None:
    """Finished updates of the newest whole checkpoint of a run; None where there is none."""
    folder = run_folder / "checkpoints"
    return max(ocp.utils.checkpoint_steps(folder), default=None) if folder.is_dir() else None


def read_config(run_folder: Path) -> ConfigDict:
    """The resolved config a run folder was made with.

    Raises:
      UserError: no such run; says which command makes one.
    """
    path = run_folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run_folder} holds no run (no config.json); make one with "
            f"`{_MADE_BY['mae']}` or `{_MADE_BY['writer']}`"
        )
    return ConfigDict(json.loads(path.read_text()))


def load_variables(run_folder: Path, kinds: Sequence[str]) -> tuple[dict, dict]:
    """The model of the newest checkpoint of a run, on the host, and the checkpoint's `meta`.

    Args:
      run_folder: a folder that pretrain or finetune wrote.
      kinds: the kinds of checkpoint the caller can use.

    Returns:
      `params` and the model's other collections, as flax applies them; and {"kind", "step"}.

    Raises:
      UserError: no checkpoint, or one of another kind.
    """
    commands = " or ".join(f"`{_MADE_BY[kind]}`" for kind in kinds)
    step = newest_step(run_folder)
    if step is None:
        raise UserError(f"no checkpoint in {run_folder}; make one with {commands}")
    newest = (run_folder / "checkpoints" / str(step)).resolve()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        meta = reader.restore(newest / "meta")
    if meta["kind"] not in kinds:
        raise UserError(
            f"the checkpoint in {run_folder} is of kind {meta['kind']!r}, but this needs "
            f"{' or '.join(map(repr, kinds))}, which {commands} makes"
        )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as reader:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            reader.metadata(newest / "variables").item_metadata.tree,
        )
        variables = reader.restore(newest / "variables", like)
    return jax.device_get(variables), meta


def params_digest(params: dict) -> str:
    """SHA-256 over names, shapes and values of parameters: what identifies a model."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(jax.device_get(leaf).tobytes())
    return digest.hexdigest()
