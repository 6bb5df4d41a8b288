"""Stage 2, finetuning: NetRVLAD on the encoder and a metric loss (paper, section 3)."""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from sklearn.cluster import MiniBatchKMeans

from saghog_jax.devices import distributed, precision
from saghog_jax.devices.sharding import check_divisible, laid_like, replicated
from saghog_jax.embedding import sift
from saghog_jax.input_pipeline.batches import loader, plans
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels.page_links import ensure_links
from saghog_jax.input_pipeline.labels.pseudo_labels import ensure_labels
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.opening import open_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.ready_patches import ready_labels
from saghog_jax.models import inputs
from saghog_jax.models.build import ENCODERS, make_writer_model, use_remat
from saghog_jax.models.netrvlad import bag_gram, page_sum, with_centroids
from saghog_jax.models.writer_model import DESCRIPTORS, token_ink
from saghog_jax.next_command import next_command
from saghog_jax.runs import pictures as drawing
from saghog_jax.runs.checkpoint import KINDS, load_variables, read_config, taken
from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.train_state import split_params
from saghog_jax.training import augment, losses, optim, validation
from saghog_jax.training.loop import run_training

# What tells classes apart, and what a picture calls them.
_CALLED = {
    "cluster": "pseudo labels",
    "page": "pages",
    "linked": "linked pages",
    "writer": "writers",
}
LABELS = tuple(_CALLED)
LOSSES = ("multi_similarity", "contrastive", "triplet", "triplet_semihard")
RATES = ("layerwise", "published")
HEAD_INITS = ("kmeans", "random", "checkpoint")
_FEATURE_BATCH = 1024
_SHOWN = 12  # Patches of a class in a picture.


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with the model of the run that `checkpoint` names and this machine's precision.

    Raises:
      UserError: no such run, an unknown choice, choices that do not go together.
    """
    for field, value, known in (
        ("labels", config.labels, LABELS),
        ("input", config.input, inputs.INPUTS),
        ("encoder", config.encoder, ENCODERS),
        ("descriptor", config.descriptor, DESCRIPTORS),
        ("netrvlad.init", config.netrvlad.init, HEAD_INITS),
        ("loss.kind", config.loss.kind, LOSSES),
        ("optim.rates", config.optim.rates, RATES),
    ):
        if value not in known:
            raise UserError(f"unknown config.{field} {value!r}, known: {', '.join(known)}")
    if config.checkpoint and config.encoder != "vit":
        raise UserError(
            f"config.encoder={config.encoder!r} starts from scratch, but config.checkpoint names "
            f"{config.checkpoint!r}; set --config.checkpoint= (nothing)"
        )
    if config.netrvlad.init == "checkpoint" and not config.checkpoint:
        raise UserError("config.netrvlad.init=checkpoint needs config.checkpoint")
    if config.accumulate > 1 and config.encoder != "vit":
        raise UserError(
            f"config.accumulate={config.accumulate} would change the batch statistics of "
            f"config.encoder={config.encoder!r}; set it to 1"
        )
    if config.freeze_encoder and not config.checkpoint:
        raise UserError("config.freeze_encoder needs config.checkpoint: nothing else was learned")
    if config.patches_per_bag < 1 or config.patches_per_class % config.patches_per_bag:
        raise UserError(
            f"config.patches_per_class={config.patches_per_class} is not a whole number of bags of "
            f"config.patches_per_bag={config.patches_per_bag} patches"
        )
    config = precision.resolve(config)
    if config.checkpoint:
        run = read_config(Path(config.checkpoint))
        if run.stage == "finetune" and run.encoder != "vit":
            raise UserError(
                f"config.checkpoint: {config.checkpoint} has the encoder {run.encoder!r}, only the "
                "vit of pretrain, convert or finetune can be started from"
            )
        config = config.copy_and_resolve_references()
        config.model = run.model
    return config


def rate_rules(config: ConfigDict) -> list[tuple[str, float]]:
    """Learning rate factors: 1 for the head and the last norm, less with every block below.

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
    """Weight decay: of matrices, or of everything, biases and norms too, as published."""
    return [("", 1)] if config.optim.rates == "published" else None


class Finetuning:
    """The task: patches of one class nearer to each other than to the rest."""

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
        # Patches that may be seen; labels are one a patch of the store.
        self._shown = np.arange(len(labels))
        if held_out:
            per_page = config.validation.patches_per_page
            self.held_out = validation.from_store(store, held_out, per_page)
            validation.check(config, self.held_out, has_loss=False)
            hidden = validation.belongs(store, held_out)
            self._shown, labels = np.flatnonzero(~hidden), np.where(hidden, -1, labels)
        self.model = make_writer_model(config, config.dropout, use_remat(config))
        self.tx = optim.make_optimizer(
            config.optim, config.total_steps, rate_rules(config), decay_rules(config)
        )
        self._store, self._labels = store, labels
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
    def skipped(self) -> int:
        """Pages that could not be used so far."""
        return len(self._store.skipped)

    def init(self, rng: jax.Array) -> dict:
        """The model from scratch: {"params": {"encoder": ..., "netrvlad": ...}, ...}."""
        size = self.config.model.patch_size
        return self.model.init(
            rng, jnp.zeros((1, size, size, 3)), binary=jnp.zeros((1, size, size, 1))
        )

    def warm_start(self, variables: dict) -> dict:
        """The pretrained encoder and the centres of its features, where the config wants them."""
        config = self.config
        params, rest = split_params(variables)
        if config.checkpoint:
            source = Path(config.checkpoint)
            kinds = ("writer",) if config.netrvlad.init == "checkpoint" else KINDS
            given, _ = load_variables(source, kinds, config.which)
            wanted = params if kinds == ("writer",) else {"encoder": params["encoder"]}
            params = {**params, **taken(given["params"], wanted, source)}
        if config.netrvlad.init == "kmeans":
            centres = self._feature_centres({"params": params, **rest})
            head = with_centroids(params["netrvlad"], centres, config.netrvlad.normalized)
            params = {**params, "netrvlad": laid_like(head, params["netrvlad"])}
        return {"params": params, **rest}

    def prepare(self, batch: dict, rng: jax.Array) -> dict:
        """Normalised images, binary, label and the key of its dropout, of each patch."""
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
        """Features and assignment of each patch, as `WriterModel` gives them."""
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
        """The metric loss of all patches or bags; its miner sees every pair of the global batch."""
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
        """Sums by page of the held-out patches' vectors, as embedding makes them."""
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
            self._store,
            self._plan,
            start_step,
            jax.process_index(),
            jax.process_count(),
            self.config.loader.threads,
            self.config.loader.prefetch,
            self._labels,
        )

    def pictures(self, variables: dict, rows: int = 8) -> list[Picture]:
        """See `Task.pictures`: patches of `rows` of the classes that have most of them."""
        del variables
        names, counts = np.unique(self._labels[self._labels >= 0], return_counts=True)
        largest = np.argsort(-counts, kind="stable")
        chosen = np.sort(names[largest[evenly(len(largest) // 2 + 1, rows)]])
        members = [np.flatnonzero(self._labels == name) for name in chosen]
        patches_per_class = min(_SHOWN, *map(len, members))
        indices = np.concatenate([m[evenly(len(m), patches_per_class)] for m in members])
        images, binary = inputs.decode(self._store.gather(indices))
        images = np.asarray(inputs.model_input(images, binary, self.config.input))
        shown = images.reshape(len(chosen), patches_per_class, *images.shape[1:])
        names = [str(name) for name in chosen]
        return [drawing.classes(shown, names, _CALLED[self.config.labels])]

    def _feature_centres(self, variables: dict) -> np.ndarray:
        """k-means centres [v, d] of descriptors of patches drawn evenly from the store."""
        config = self.config

        # Of arrays on a mesh the result must be whole on every process.
        place = jax.tree.leaves(variables)[0].sharding
        whole = replicated(place.mesh) if isinstance(place, NamedSharding) else None

        @functools.partial(jax.jit, out_shardings=whole)
        def describe(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
            images, binary = inputs.decode(batch)
            images = inputs.normalize(inputs.model_input(images, binary, config.input))
            x = self.model.apply(variables, images, method="encode")
            return x, token_ink(binary, self.model.encoder.token_size)

        chosen = self._shown[evenly(len(self._shown), config.netrvlad.init_samples)]
        found = []
        for first in range(0, len(chosen), _FEATURE_BATCH):
            rows = chosen[first : first + _FEATURE_BATCH]
            # The last batch is filled up so that only one shape is compiled.
            batch = self._store.gather(np.resize(rows, _FEATURE_BATCH))
            x, ink = (np.asarray(a)[: len(rows)] for a in describe(variables, batch))
            found.append(x[ink >= config.min_token_ink] if x.ndim == 3 else x)
        features = np.concatenate(found)
        features = features[evenly(len(features), config.netrvlad.init_samples)]
        kmeans = MiniBatchKMeans(config.netrvlad.num_clusters, random_state=config.seed, n_init=3)
        # One process's centres for all: theirs may differ in the last bit.
        return distributed.broadcast(kmeans.fit(features).cluster_centers_.astype(np.float32))


def metric_loss(gram: jax.Array, labels: jax.Array, loss: ConfigDict) -> jax.Array:
    """The loss that the `loss` section names, of cosine similarities [b, b] and classes [b]."""
    if loss.kind == "triplet":
        return losses.triplet(gram, labels, loss.margin, loss.include_self)
    if loss.kind == "triplet_semihard":
        return losses.triplet_semihard(gram, labels, loss.margin)
    if loss.kind == "contrastive":
        return losses.contrastive(gram, labels, loss.temperature)
    return losses.multi_similarity(gram, labels, loss.alpha, loss.beta, loss.base, loss.epsilon)


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
    if config.labels == "page":
        return store.index["page"]
    if config.labels == "linked":
        return ensure_links(store, config.links)
    if config.data.cluster_regex:
        return ready_labels(store)
    return ensure_labels(store, config.pseudo_labels)


def open_task(config: ConfigDict, folder: Path) -> Finetuning:
    """The task of a resolved config.

    Args:
      folder: the run folder, which keeps what is held out.
    """
    store = distributed.main_first(
        lambda: open_store(config.data, config.store, regions=config.regions)
    )
    labels = distributed.main_first(lambda: make_labels(config, store))
    held_out = validation.plan(config, folder, store.manifest.pages)
    if config.sift_words:
        shown = np.flatnonzero(~validation.belongs(store, held_out))
        distributed.main_first(lambda: sift.ensure_words(folder, store, shown, config.sift_words))
    return Finetuning(config, store, labels, held_out)


def run(config: ConfigDict, workdir: Path) -> int:
    """Finetunes in the run folder `workdir`; returns the number of pages that were skipped."""
    # Ready-cut patches are no pages, which embed needs.
    sections = {} if config.data.cluster_regex else {"data": config.data}
    sections["regions"] = config.regions
    sections["scale"] = config.store.scale
    following = next_command("embed", workdir=workdir, **sections, checkpoint=workdir)
    return run_training(resolve(config), workdir, Finetuning.kind, open_task, following)
