"""Stage 1, pretraining: what is learned; the loop is train.py's (paper, section 3)."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.crop_batches import PageCrops, open_crops
from input_pipeline.errors import UserError
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
SOURCES = ("store", "crops")


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


def open_source(config: ConfigDict) -> Store | PageCrops:
    """Where the patches of a pretraining config come from.

    Raises:
      UserError: an unknown source, or what keeps it from being opened.
    """
    if config.source not in SOURCES:
        raise UserError(f"unknown config.source {config.source!r}, known: {', '.join(SOURCES)}")
    if config.source == "crops":
        return open_crops(config)
    return open_store(config.data, config.store, regions=config.regions)


class Pretraining:
    """The task of train.py: predict the targets of the removed tokens."""

    kind = "mae"

    def __init__(self, config: ConfigDict, source: Store | PageCrops) -> None:
        self.config = config
        self.model = model_of(config)
        self.tx = optim.make_optimizer(config.optim, config.total_steps)
        self._source = source
        local_batch_size(config.global_batch_size)
        if isinstance(source, Store):
            self._plan = loader.uniform_plan(
                len(source), config.global_batch_size, config.total_steps, config.seed
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
            config.hog.half_precision,
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
        position = (start_step, jax.process_index(), jax.process_count())
        options = self.config.loader
        if isinstance(self._source, PageCrops):
            return self._source.batches(*position, options)
        return loader.batches(
            self._source, self._plan, *position, options.threads, options.prefetch
        )


def run(config: ConfigDict, workdir: Path) -> int:
    """Pretrains in the run folder `workdir`; returns the number of pages that were skipped."""
    config = resolve(config)
    skipped = 0
    run = Run(config, workdir, Pretraining.kind)
    if run.finished:
        print(f"{workdir} has all its {run.start_step} steps already")
    else:
        source = open_source(config)
        run.fit(Pretraining(config, source))
        skipped = len(source.skipped)
    print(f"next: {NEXT} --config.init_from={workdir}")
    return skipped
