"""Stage 1, pretraining: what is learned; the loop is train.py's (paper, section 3)."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.store import Store
from input_pipeline.stores import open_store
from saghog_jax import augment, optim
from saghog_jax.models.mae import MaskedAutoencoder, mask_noise, removed_loss
from saghog_jax.models.make import make_mae
from saghog_jax.precision import operand_dtype, resolve
from saghog_jax.sharding import local_batch_size
from saghog_jax.targets import make_targets, target_dim
from saghog_jax.train import Run

NEXT = "python -m saghog_jax.main --config=configs/finetune.py"


def model_of(config: ConfigDict) -> MaskedAutoencoder:
    """The masked autoencoder of a pretraining config."""
    channels = target_dim(
        config.target, config.model.token_size, config.hog.cell_size, config.hog.num_bins
    )
    return make_mae(config.model, channels, operand_dtype(config.precision))


def init_variables(config: ConfigDict, rng: jax.Array) -> dict:
    """The model before the first update: {"params": {"encoder": ..., "decoder": ...}}."""
    model, size = model_of(config), config.model.patch_size
    tokens = (size // config.model.token_size) ** 2
    images, noise = jnp.zeros((1, size, size, 3)), jnp.zeros((1, tokens))
    return model.init(rng, images, noise, config.mask_ratio, method="removed")


class Pretraining:
    """The task of train.py: predict the targets of the removed tokens."""

    kind = "mae"

    def __init__(self, config: ConfigDict, store: Store) -> None:
        self.config = config
        self.model = model_of(config)
        self.tx = optim.make_optimizer(config.optim, config.total_steps)
        self._store = store
        local_batch_size(config.global_batch_size)
        self._plan = loader.uniform_plan(
            len(store), config.global_batch_size, config.total_steps, config.seed
        )

    def init(self, rng: jax.Array) -> dict:
        """See `init_variables`."""
        return init_variables(self.config, rng)

    def warm_start(self, variables: dict) -> dict:
        """Pretraining starts from random weights."""
        return variables

    def loss(self, variables: dict, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """Mean squared error of the removed tokens; the batch is as `Task.loss` has it."""
        config = self.config
        move_rng, augment_rng, mask_rng = jax.random.split(rng, 3)
        images, binary = augment.move(move_rng, *augment.decode(batch), config.augment)
        targets = make_targets(
            config.target,
            images,
            binary,
            config.model.token_size,
            config.hog.cell_size,
            config.hog.num_bins,
        )
        images = augment.augment(augment_rng, images, binary, config.augment)
        noise = mask_noise(mask_rng, *targets.shape[:2])
        predicted, ids_removed = self.model.apply(
            variables,
            augment.normalize(images),
            noise,
            config.mask_ratio,
            method="removed",
        )
        return removed_loss(predicted, targets, ids_removed), {}

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """See `Task.batches`."""
        return loader.batches(
            self._store,
            self._plan,
            start_step,
            jax.process_index(),
            jax.process_count(),
            self.config.loader.threads,
            self.config.loader.prefetch,
        )


def run(config: ConfigDict, workdir: Path) -> int:
    """Pretrains in the run folder `workdir`; returns the number of pages that were skipped."""
    config = resolve(config)
    skipped = 0
    with Run(config, workdir, Pretraining.kind) as run:
        if run.finished:
            print(f"{workdir} has all its {run.start_step} steps already")
        else:
            store = open_store(config.data, config.store)
            skipped = len(store.skipped)
            run.fit(Pretraining(config, store))
    print(f"next: {NEXT} --config.init_from={workdir}")
    return skipped
