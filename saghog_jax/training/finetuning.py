"""The task of finetuning: NetRVLAD on the encoder and a metric loss (paper, section 3)."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.devices.sharding import check_divisible, shard_like
from saghog_jax.input_pipeline.batches import loader, plans
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.opening import open_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.models import inputs
from saghog_jax.models.build import make_writer_model, use_remat
from saghog_jax.models.netrvlad import bag_gram, page_sum, with_centroids
from saghog_jax.runs import pictures as drawing
from saghog_jax.runs.checkpoint import KINDS, load_variables
from saghog_jax.runs.parameters import matching_parameters
from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.train_state import split_params
from saghog_jax.training import augment, losses, optim, validation
from saghog_jax.training.head_init import feature_centres
from saghog_jax.training.labels import CLASS_NAMES, make_labels
from saghog_jax.weights.packed import model_folder

LOSSES = ("multi_similarity", "contrastive", "triplet", "triplet_semihard")
RATES = ("layerwise", "published")
HEAD_INITS = ("kmeans", "random", "checkpoint")
_SHOWN = 12  # Patches of a class in a picture.


def rate_rules(config: ConfigDict) -> list[tuple[str, float]]:
    """Factors of the learning rate: 1 for the head and the last norm, less with every block below.

    Block i of n has layer_decay^(n - i). With `layerwise` the embedding of tokens and the CLS token
    lie below the first block, with layer_decay^(n + 1); `published` gives the embedding factor 1
    and never updates the CLS token.
    """
    head = [(r"^(netrvlad|embed)/", 1.0), (r"^ridge$", 1.0)]
    if config.freeze_encoder:
        return [*head, (r"^encoder/", 0.0)]
    if config.encoder != "vit":
        return [*head, (r"^encoder/", 1.0)]
    decay, depth = config.optim.layer_decay, config.model.depth
    below = decay ** (depth + 1)
    published = config.optim.rates == "published"
    return [
        *head,
        *((rf"^encoder/block_{i}/", decay ** (depth - i)) for i in range(depth)),
        (r"^encoder/patch_embed/", 1.0 if published else below),
        (r"^encoder/cls_token$", 0.0 if published else below),
        (r"^encoder/norm/", 1.0),
    ]


def decay_rules(config: ConfigDict) -> list[tuple[str, float]] | None:
    """Weight decay: of matrices, or, as published, of all parameters with biases and norms."""
    return [("", 1)] if config.optim.rates == "published" else None


class Finetuning:
    """The task: patches of one class become more similar to each other than to other patches."""

    kind = "writer"
    mean_of_rows = False

    def __init__(
        self,
        config: ConfigDict,
        store: Store,
        labels: np.ndarray,
        held_out: frozenset[str] = frozenset(),
    ) -> None:
        self.config = config
        self.held_out = None
        # Patches to train on, rows of the store; there is one label a patch of the store.
        self.shown = np.arange(len(labels))
        if held_out:
            per_page = config.validation.patches_per_page
            self.held_out = validation.from_store(store, held_out, per_page)
            validation.check(config, self.held_out, has_loss=False)
            mask = validation.held_out_mask(store, held_out)
            self.shown, labels = np.flatnonzero(~mask), np.where(mask, -1, labels)
        self.model = make_writer_model(config, config.dropout, use_remat(config))
        self.tx = optim.make_optimizer(
            config.optim, config.total_steps, rate_rules(config), decay_rules(config)
        )
        self.store, self._labels = store, labels
        check_divisible("global_batch_size", config.global_batch_size, jax.device_count())
        size = (config.global_batch_size, config.total_steps, config.seed)
        if config.patches_per_bag == 1:
            self._plan = plans.m_per_class_plan(labels, config.patches_per_class, *size)
        else:
            bags = config.patches_per_class // config.patches_per_bag
            self._plan = plans.bag_plan(
                labels, store.index["page"], config.patches_per_bag, bags, *size
            )

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(page_id, reason) of the pages that could not be used so far."""
        return self.store.skipped

    def init(self, rng: jax.Array) -> dict:
        """The model from scratch: {"params": {"encoder": ..., "netrvlad": ...}, ...}."""
        size = self.config.model.patch_size
        return self.model.init(
            rng, jnp.zeros((1, size, size, 3)), binary=jnp.zeros((1, size, size, 1))
        )

    def warm_start(self, variables: dict) -> dict:
        """The pretrained encoder, and centroids from its features, if the config asks for them."""
        config = self.config
        params, rest = split_params(variables)
        if config.checkpoint:
            source = model_folder(config.checkpoint)
            kinds = ("writer",) if config.netrvlad.init == "checkpoint" else KINDS
            loaded, _ = load_variables(source, kinds, config.which)
            replaced = params if kinds == ("writer",) else {"encoder": params["encoder"]}
            params = {**params, **matching_parameters(loaded["params"], replaced, source)}
        if config.netrvlad.init == "kmeans":
            centres = feature_centres(
                config, self.model, {"params": params, **rest}, self.store, self.shown
            )
            head = with_centroids(params["netrvlad"], centres, config.netrvlad.normalized)
            params = {**params, "netrvlad": shard_like(head, params["netrvlad"])}
        return {"params": params, **rest}

    def prepare(self, batch: dict, rng: jax.Array) -> dict:
        """Normalised image, binary, label and dropout key of each patch."""
        config = self.config
        move_rng, augment_rng, dropout_rng = jax.random.split(rng, 3)
        images, binary = augment.move(move_rng, *inputs.decode(batch), config.augment)
        images = inputs.model_input(images, binary, config.input)
        images = augment.augment(augment_rng, images, binary, config.augment)
        return {
            "images": inputs.normalize(images),
            "binary": binary,
            "label": batch["label"],
            "key": jax.random.split(dropout_rng, images.shape[0]),
        }

    def outputs(self, variables: dict, rows: dict) -> tuple[tuple[jax.Array, jax.Array], dict]:
        """Features and assignment of each patch, as `WriterModel` returns them."""
        config = self.config
        if config.freeze_encoder:
            frozen = jax.lax.stop_gradient(variables["params"]["encoder"])
            variables = {**variables, "params": {**variables["params"], "encoder": frozen}}
        _, rest = split_params(variables)
        outputs, collections = self.model.apply(
            variables,
            rows["images"],
            train=not config.freeze_encoder,
            binary=rows["binary"],
            dropout_keys=rows["key"],
            mutable=list(rest),
        )
        return outputs, dict(collections)

    def loss(self, variables: dict, outputs: tuple[jax.Array, jax.Array], rows: dict) -> jax.Array:
        """The metric loss over all patches or bags; every pair of the global batch is mined."""
        config = self.config

        def of(features: jax.Array, assignment: jax.Array, centroids: jax.Array) -> jax.Array:
            gram = bag_gram(
                assignment, features, centroids, config.patches_per_bag, config.netrvlad.normalized
            )
            return metric_loss(gram, rows["label"][:: config.patches_per_bag], config.loss)

        of = jax.checkpoint(of) if use_remat(config) else of
        return of(*outputs, variables["params"]["netrvlad"]["centroids"])

    def validate(
        self, variables: dict, batch: dict, segments: jax.Array, rng: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums by page of the vectors of held-out patches, as in embedding."""
        del rng
        images, binary = inputs.decode(batch)
        images = inputs.normalize(inputs.model_input(images, binary, self.config.input))
        x, assignment = self.model.apply(variables, images, binary=binary)
        centroids = variables["params"]["netrvlad"]["centroids"]
        sums = page_sum(assignment, x, centroids, segments, self.config.netrvlad.normalized)
        return {"sums": sums.reshape(sums.shape[0], -1)}

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """See `Task.batches`."""
        return loader.batches(
            self.store,
            self._plan,
            start_step,
            jax.process_index(),
            jax.process_count(),
            self.config.loader.threads,
            self.config.loader.prefetch,
            self._labels,
        )

    def pictures(self, variables: dict, rows: int = 8) -> list[Picture]:
        """See `Task.pictures`: patches of `rows` classes, drawn from the half with most patches."""
        del variables
        names, counts = np.unique(self._labels[self._labels >= 0], return_counts=True)
        largest = np.argsort(-counts, kind="stable")
        drawn = np.sort(names[largest[evenly(len(largest) // 2 + 1, rows)]])
        members = [np.flatnonzero(self._labels == name) for name in drawn]
        patches_per_class = min(_SHOWN, *map(len, members))
        indices = np.concatenate([m[evenly(len(m), patches_per_class)] for m in members])
        images, binary = inputs.decode(self.store.gather(indices))
        images = inputs.three_channels(inputs.model_input(images, binary, self.config.input))
        images = np.asarray(images)
        shown = images.reshape(len(drawn), patches_per_class, *images.shape[1:])
        names = [str(name) for name in drawn]
        return [drawing.classes(shown, names, CLASS_NAMES[self.config.labels])]


def metric_loss(gram: jax.Array, labels: jax.Array, loss: ConfigDict) -> jax.Array:
    """The loss that the `loss` section names, of cosine similarities [b, b] and classes [b]."""
    if loss.kind == "triplet":
        return losses.triplet(gram, labels, loss.margin, loss.include_self)
    if loss.kind == "triplet_semihard":
        return losses.triplet_semihard(gram, labels, loss.margin)
    if loss.kind == "contrastive":
        return losses.contrastive(gram, labels, loss.temperature)
    return losses.multi_similarity(gram, labels, loss.alpha, loss.beta, loss.base, loss.epsilon)


def open_task(config: ConfigDict, folder: Path) -> Finetuning:
    """The task of a resolved config.

    Args:
      folder: the run folder, which records the held-out pages.
    """
    store = distributed.main_first(
        lambda: open_store(config.data, config.store, regions=config.regions)
    )
    labels = distributed.main_first(lambda: make_labels(config, store))
    held_out = validation.plan(config, folder, store.manifest.pages)
    return Finetuning(config, store, labels, held_out)
