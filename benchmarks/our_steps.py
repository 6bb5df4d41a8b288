"""Whole training steps of this project at paper size, on random patches, for the benchmarks."""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.measure import FOLDER
from saghog_jax.configs import finetune as finetune_config
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.devices.precision import resolve
from saghog_jax.training.finetuning import Finetuning
from saghog_jax.training.pretraining import Pretraining
from saghog_jax.training.task import Task, init_state, make_step

BATCH = 256
PER_CLASS = 16


def arguments(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The command line of a benchmark of steps: rounds, batch, and the folder of the figures."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    return parser


def random_batch(batch_size: int) -> dict[str, np.ndarray]:
    """A batch as the loader ships it: noise with strokes of ink, and labels."""
    rng = np.random.default_rng(0)
    # Blocks of 4 x 4 pixels: most gradients of the ink are zero, as in writing.
    ink = np.kron(rng.random((batch_size, 8, 8)) < 0.3, np.ones((4, 4), bool))
    return {
        "patches": rng.integers(0, 256, (batch_size, 32, 32, 3), np.uint8),
        "ink": np.packbits(ink.reshape(batch_size, -1), axis=1),
        "label": np.repeat(np.arange(batch_size // PER_CLASS, dtype=np.int32), PER_CLASS),
    }


def binary_of(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The binary patches of a batch as PyTorch programs take them: float32 [b, 1, 32, 32]."""
    return (1 - np.unpackbits(batch["ink"], axis=1)).reshape(-1, 1, 32, 32).astype(np.float32)


def pretraining(precision: str, batch_size: int = BATCH, **fields: object) -> Pretraining:
    """The task of pretraining at paper size."""
    config = pretrain_config.get_config("paper,source=store")
    return Pretraining(_with(config, precision, batch_size, fields), None)


def finetuning(precision: str, batch_size: int = BATCH, **fields: object) -> Finetuning:
    """The task of finetuning at paper size: NetRVLAD 100, multi-similarity with miner."""
    config = finetune_config.get_config("historical_wi,encoder=scratch")
    config = _with(config, precision, batch_size, fields)
    return Finetuning(config, None, random_batch(batch_size)["label"])


def _with(config: ConfigDict, precision: str, batch_size: int, fields: dict) -> ConfigDict:
    config.update_from_flattened_dict(
        {"precision": precision, "global_batch_size": batch_size, **fields}
    )
    return resolve(config)


def compiled_step(task: Task) -> Callable[[], float]:
    """Compiles the update of a task; a call makes one and returns its loss."""
    state = jax.jit(lambda: init_state(task, 0))()
    batch = random_batch(task.config.global_batch_size)
    if isinstance(task, Pretraining):
        del batch["label"]
    batch = jax.device_put(batch)
    update = jax.jit(make_step(task, 0), donate_argnums=0).lower(state, batch).compile()

    def step() -> float:
        nonlocal state
        state, metrics = update(state, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return step
