"""The task of pretraining: predict the HOG of the removed tokens (paper, section 3)."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.devices.precision import operand_dtype
from saghog_jax.devices.sharding import check_divisible
from saghog_jax.input_pipeline.batches import loader, plans
from saghog_jax.input_pipeline.batches.crop_batches import PageCrops, open_crops
from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.opening import open_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.models import inputs
from saghog_jax.models.build import init_variables, make_encoder, model_of
from saghog_jax.models.mae import mask_noise, removed_errors
from saghog_jax.models.targets import make_targets
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.runs import pictures as drawing
from saghog_jax.runs.checkpoint import KINDS, load_variables
from saghog_jax.runs.parameters import matching_parameters, same_shapes
from saghog_jax.runs.pictures import Picture
from saghog_jax.training import augment, optim, validation
from saghog_jax.weights.packed import model_folder

SOURCES = ("store", "crops")


def open_source(config: ConfigDict, leave_out: frozenset[str] = frozenset()) -> Store | PageCrops:
    """Opens the patches of a pretraining config; of pages `leave_out` no crops are cut.

    Raises:
      UserError: the source is unknown or cannot be opened.
    """
    check_choice("config.source", config.source, SOURCES)
    if config.source == "crops":
        return open_crops(config, leave_out=leave_out)
    return distributed.main_first(
        lambda: open_store(config.data, config.store, regions=config.regions)
    )


def open_and_plan(config: ConfigDict, folder: Path) -> tuple[Store | PageCrops, frozenset[str]]:
    """The source of patches, and the ids of the pages that the run in `folder` holds out.

    Raises:
      UserError: see `open_source` and `validation.plan`.
    """
    if config.source == "crops":
        held_out = validation.plan(config, folder, load_manifest(config.data, tell=False).pages)
        return open_source(config, held_out), held_out
    source = open_source(config)
    return source, validation.plan(config, folder, source.manifest.pages)


class Pretraining:
    """The task: predict the targets of the removed tokens."""

    kind = "mae"
    mean_of_rows = True

    def __init__(
        self,
        config: ConfigDict,
        source: Store | PageCrops,
        held_out: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.held_out = None
        if held_out:
            self.held_out = self._held_out_patches(source, held_out)
            validation.check(config, self.held_out, has_loss=True)
        self.model = model_of(config)
        self.tx = optim.make_optimizer(config.optim, config.total_steps)
        self._source = source
        check_divisible("global_batch_size", config.global_batch_size, jax.device_count())
        if isinstance(source, Store):
            rows = np.flatnonzero(~validation.held_out_mask(source, held_out))
            plan = plans.uniform_plan(
                len(rows), config.global_batch_size, config.total_steps, config.seed
            )
            self._plan = plans.SubsetPlan(plan, rows) if held_out else plan

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(page_id, reason) of the pages that could not be used so far."""
        return self._source.skipped

    def init(self, rng: jax.Array) -> dict:
        """See `init_variables`."""
        return init_variables(self.config, rng)

    def warm_start(self, variables: dict) -> dict:
        """The weights to start from: random, or of the run that `checkpoint` names.

        Raises:
          UserError: that run has a model of other sizes.
        """
        if not self.config.checkpoint:
            return variables
        source = model_folder(self.config.checkpoint)
        loaded, meta = load_variables(source, KINDS, self.config.which)
        params = variables["params"]
        replaced = {"encoder": params["encoder"]}
        # The decoder is kept only if it predicts the same targets.
        if meta["kind"] == "mae" and same_shapes(loaded["params"]["decoder"], params["decoder"]):
            replaced["decoder"] = params["decoder"]
        return {"params": {**params, **matching_parameters(loaded["params"], replaced, source)}}

    def prepare(self, batch: dict, rng: jax.Array, augmented: bool = True) -> dict:
        """Normalised images, targets and mask noise of each patch."""
        config = self.config
        move_rng, augment_rng, mask_rng = jax.random.split(rng, 3)
        images, binary = inputs.decode(batch)
        if augmented:
            images, binary = augment.move(move_rng, images, binary, config.augment)
        targets = make_targets(
            config.target,
            images,
            binary,
            config.model.token_size,
            config.hog.cell_size,
            config.hog.num_bins,
            config.hog.half_precision,
        )
        if augmented:
            images = augment.augment(augment_rng, images, binary, config.augment)
        noise = mask_noise(mask_rng, *targets.shape[:2])
        return {"images": inputs.normalize(images), "targets": targets, "noise": noise}

    def outputs(self, variables: dict, rows: dict) -> tuple[jax.Array, dict]:
        """The mean squared error of the removed tokens of each patch, [b]."""
        predicted, ids_removed = self.model.apply(
            variables, rows["images"], rows["noise"], self.config.mask_ratio, method="removed"
        )
        return removed_errors(predicted, rows["targets"], ids_removed), {}

    def loss(self, variables: dict, outputs: jax.Array, rows: dict) -> jax.Array:
        """Mean squared error of the removed tokens of all patches."""
        del variables, rows
        return jnp.mean(outputs)

    def validate(
        self, variables: dict, batch: dict, segments: jax.Array, rng: jax.Array
    ) -> dict[str, jax.Array]:
        """Errors of the held-out patches, and sums by page of their L2-normalised CLS features."""
        rows = self.prepare(batch, rng, augmented=False)
        errors, _ = self.outputs(variables, rows)
        config = self.config
        encoder = make_encoder(config.model, operand_dtype(config.precision))
        alone = {"params": variables["params"]["encoder"]}
        features = encoder.apply(alone, rows["images"], method="features")
        sums = jnp.matmul(segments, l2_normalize(features), precision="highest")
        return {"errors": errors, "sums": sums}

    def _held_out_patches(
        self, source: Store | PageCrops, held_out: frozenset[str]
    ) -> validation.HeldOut:
        config = self.config
        if isinstance(source, Store):
            per_page = config.validation.patches_per_page
            return validation.from_store(source, held_out, per_page)
        return validation.from_pages(config, held_out)

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """See `Task.batches`."""
        position = (start_step, jax.process_index(), jax.process_count())
        options = self.config.loader
        if isinstance(self._source, PageCrops):
            return self._source.batches(*position, options)
        return loader.batches(
            self._source, self._plan, *position, options.threads, options.prefetch
        )

    def pictures(self, variables: dict, rows: int = 8) -> list[Picture]:
        """See `Task.pictures`: the reconstruction of `rows` patches, spread evenly."""
        batch = self._patches(rows)
        images, binary = inputs.decode(batch)
        rng = jax.random.key(self.config.seed)
        prepared = self.prepare(batch, rng, augmented=False)
        out = self.model.apply(
            variables, prepared["images"], prepared["noise"], self.config.mask_ratio
        )
        arrays = (images, binary, out["mask"], prepared["targets"], out["pred"])
        return [drawing.reconstruction(*map(np.asarray, arrays), self.config)]

    def _patches(self, count: int) -> dict[str, np.ndarray]:
        if isinstance(self._source, Store):
            return self._source.gather(evenly(len(self._source), count))
        with self._source.batches(0, 0, 1, self.config.loader) as batches:
            batch = next(batches)
        drawn = evenly(self.config.global_batch_size, count)
        return {name: rows[drawn] for name, rows in batch.items()}


def open_task(config: ConfigDict, folder: Path) -> Pretraining:
    """The task of a resolved config.

    Args:
      folder: the run folder, which records the held-out pages.
    """
    source, held_out = open_and_plan(config, folder)
    return Pretraining(config, source, held_out)
