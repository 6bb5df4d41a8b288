"""Stage 2, finetuning: NetRVLAD on the encoder, multi-similarity loss (paper, section 3)."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from sklearn.cluster import MiniBatchKMeans

from input_pipeline import loader
from input_pipeline.build import ensure_store
from input_pipeline.errors import UserError
from input_pipeline.pseudo_labels import ensure_labels
from input_pipeline.store import Store
from saghog_jax import augment, optim, precision
from saghog_jax.checkpoint import load_params, read_config
from saghog_jax.losses import multi_similarity
from saghog_jax.models.make import make_encoder, make_writer_model
from saghog_jax.models.netrvlad import cosine_gram, with_centroids
from saghog_jax.precision import operand_dtype
from saghog_jax.sharding import local_batch_size
from saghog_jax.train import Run

NEXT = "python -m saghog_jax.main --config=configs/embed.py"
LABELS = ("cluster", "writer")
INPUTS = ("page", "binary")
_FEATURE_BATCH = 1024


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with the model of the run that `init_from` names, and this machine's precision.

    Raises:
      UserError: no such run; unknown `labels`, `input` or `netrvlad.init`.
    """
    for field, value, known in (
        ("labels", config.labels, LABELS),
        ("input", config.input, INPUTS),
        ("netrvlad.init", config.netrvlad.init, ("kmeans", "random")),
    ):
        if value not in known:
            raise UserError(f"unknown config.{field} {value!r}, known: {', '.join(known)}")
    config = precision.resolve(config)
    if config.init_from:
        config = config.copy_and_resolve_references()
        config.model = read_config(Path(config.init_from)).model
    return config


def rate_rules(depth: int, decay: float) -> list[tuple[str, float]]:
    """Learning rate factors: 1 for NetRVLAD and the last norm, less with every block below.

    Block i of n has decay^(n - i). The embedding of tokens and the CLS token lie below the first
    block and have decay^(n + 1); the published code gives the embedding factor 1 and never updates
    the CLS token.
    """
    blocks = [(rf"encoder/block_{i}/", decay ** (depth - i)) for i in range(depth)]
    below = [(r"encoder/(patch_embed|cls_token)", decay ** (depth + 1))]
    return [*blocks, *below, (r"encoder/norm/", 1.0), (r"^netrvlad/", 1.0)]


class Finetuning:
    """The task of train.py: patches of one class nearer to each other than to the rest."""

    kind = "writer"

    def __init__(self, config: ConfigDict, store: Store, labels: np.ndarray) -> None:
        self.config = config
        self.model = make_writer_model(
            config.model, config.netrvlad, operand_dtype(config.precision), config.dropout
        )
        self.tx = optim.make_optimizer(
            config.optim,
            config.total_steps,
            rate_rules(config.model.depth, config.optim.layer_decay),
        )
        self._store, self._labels = store, labels
        local_batch_size(config.global_batch_size)
        self._plan = loader.m_per_class_plan(
            labels, config.per_class, config.global_batch_size, config.total_steps, config.seed
        )

    def init(self, rng: jax.Array) -> dict:
        """Parameters from scratch: {"encoder": ..., "netrvlad": ...}."""
        size = self.config.model.patch_size
        return self.model.init(rng, jnp.zeros((1, size, size, 3)))["params"]

    def warm_start(self, params: dict) -> dict:
        """The pretrained encoder and the centres of its features, where the config wants them."""
        config = self.config
        if config.init_from:
            given, _ = load_params(Path(config.init_from), ("mae", "writer"))
            params = {**params, "encoder": given["encoder"]}
        if config.netrvlad.init == "kmeans":
            centres = self._feature_centres(params["encoder"])
            params = {**params, "netrvlad": with_centroids(params["netrvlad"], centres)}
        return params

    def loss(self, params: dict, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """Multi-similarity loss of the global batch; the batch is as `Task.loss` has it."""
        config = self.config
        augment_rng, dropout_rng = jax.random.split(rng)
        images, binary = augment.decode(batch)
        images = self._input(images, binary)
        images = augment.augment(augment_rng, images, binary, config.augment)
        features, assignment = self.model.apply(
            {"params": params},
            augment.normalize(images),
            train=True,
            rngs={"dropout": dropout_rng},
        )
        gram = cosine_gram(assignment, features, params["netrvlad"]["centroids"])
        loss = multi_similarity(
            gram,
            batch["label"],
            config.loss.alpha,
            config.loss.beta,
            config.loss.base,
            config.loss.epsilon,
        )
        return loss, {}

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
            self._labels,
        )

    def _input(self, images: jax.Array, binary: jax.Array) -> jax.Array:
        if self.config.input == "binary":
            return jnp.broadcast_to(binary, images.shape)
        return images

    def _feature_centres(self, encoder_params: dict) -> np.ndarray:
        """k-means centres [v, d] of CLS features of patches drawn evenly from the store."""
        config = self.config
        encoder = make_encoder(config.model, operand_dtype(config.precision))

        @jax.jit
        def features(params: dict, batch: dict) -> jax.Array:
            images = self._input(*augment.decode(batch))
            return encoder.apply({"params": params}, augment.normalize(images), method="features")

        n = len(self._store)
        chosen = np.linspace(0, n - 1, min(n, config.netrvlad.init_samples)).astype(np.int64)
        found = []
        for first in range(0, len(chosen), _FEATURE_BATCH):
            rows = chosen[first : first + _FEATURE_BATCH]
            # The last batch is filled up so that only one shape is compiled.
            padded = np.resize(rows, _FEATURE_BATCH)
            out = features(encoder_params, self._store.gather(padded))
            found.append(np.asarray(out)[: len(rows)])
        kmeans = MiniBatchKMeans(config.netrvlad.num_clusters, random_state=config.seed, n_init=3)
        return kmeans.fit(np.concatenate(found)).cluster_centers_.astype(np.float32)


def make_labels(config: ConfigDict, store: Store) -> np.ndarray:
    """The class of each patch of the store, int32 [n]; negative where it has none."""
    if config.labels == "writer":
        if not store.manifest.writers:
            raise UserError(
                f"config.labels is 'writer' but no page of {config.data.pages!r} has a writer; "
                "give --config.data.writer_regex or a manifest with a writer column, or train on "
                "--config.labels=cluster, which needs none"
            )
        return store.writer_ids
    return ensure_labels(store, config.pseudo_labels)


def run(config: ConfigDict, workdir: Path) -> int:
    """Finetunes in the run folder `workdir`; returns the number of pages that were skipped."""
    config = resolve(config)
    run = Run(config, workdir, Finetuning.kind)
    skipped = 0
    if run.finished:
        print(f"{workdir} has all its {run.start_step} steps already")
    else:
        store = Store.open(ensure_store(config.data, config.store))
        skipped = len(store.skipped)
        run.fit(Finetuning(config, store, make_labels(config, store)))
    print(f"next: {NEXT} --config.checkpoint={workdir}")
    return skipped
