"""Stage 3: a checkpoint and pages to page descriptors (paper, section 3; reference: section 7).

Pages stream from the processes that cut them into batches that mix pages, and only sums come back
from the device, so that memory does not grow with a page or with the collection.

Axis letters: b patches of a batch, s pages of a batch, p pages, d width of a page descriptor.
"""

import csv
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.build import FINGERPRINTS
from input_pipeline.errors import UserError
from input_pipeline.fingerprint import fingerprints
from input_pipeline.manifest import Manifest, load_manifest
from input_pipeline.patches import Cut, Rule
from input_pipeline.regions.masks import RegionMasks, open_masks
from input_pipeline.stream import stream_cuts
from saghog_jax import augment, precision, pretrain, sharding
from saghog_jax.checkpoint import KINDS, load_variables, params_digest, read_config
from saghog_jax.embed_groups import Groups
from saghog_jax.files import replacing
from saghog_jax.logging import duration
from saghog_jax.models.make import make_encoder, make_writer_model
from saghog_jax.models.netrvlad import page_sum
from saghog_jax.precision import operand_dtype
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm
from saghog_jax.retrieval.embeddings import save_embeddings

NEXT = "python -m saghog_jax.main --config=configs/retrieve.py"
COMPARE = ("random", "pretrained")
INPUTS = ("auto", "page", "binary")
_LOG_SECONDS = 10.0


@dataclass(frozen=True)
class Model:
    """What turns the patches of a batch into sums of descriptors by page.

    `describe(variables, images, binary)` takes normalised images [b, h, w, c] and their binary
    [b, h, w, 1], and returns features and assignment as `netrvlad.vlad` reads them with
    `centroids` [v, d]. `sums(variables, images, binary, segments)` takes weights [s, b] too, and
    returns [s, v * d]. CLS features are VLAD of one cluster at zero.
    """

    name: str
    kind: str
    input: str
    variables: dict
    describe: Callable[[dict, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    sums: Callable[[dict, jax.Array, jax.Array, jax.Array], jax.Array]
    centroids: np.ndarray
    intra_normalize: bool

    @property
    def dim(self) -> int:
        """Width of a page descriptor."""
        return self.centroids.size


def cls_model(name: str, config: ConfigDict, variables: dict, source: str) -> Model:
    """Sums of L2-normalised CLS features of an encoder; `config` is that of its run."""
    kind = config.encoder if config.stage == "finetune" else "vit"
    encoder = make_encoder(config.model, operand_dtype(config.precision), kind=kind)

    def describe(
        variables: dict, images: jax.Array, binary: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del binary
        x = encoder.apply(variables, images, method="features")
        return x, jnp.ones((x.shape[0], 1), x.dtype)

    def sums(
        variables: dict, images: jax.Array, binary: jax.Array, segments: jax.Array
    ) -> jax.Array:
        x, _ = describe(variables, images, binary)
        return segments @ l2_normalize(x)

    alone = {name: tree["encoder"] for name, tree in variables.items()}
    width = config.model.width if kind == "vit" else encoder.width
    origin = np.zeros((1, width), np.float32)
    return Model(name, "cls", source, alone, describe, sums, origin, False)


def netrvlad_model(name: str, config: ConfigDict, variables: dict, source: str) -> Model:
    """Sums of L2-normalised NetRVLAD vectors; `config` is that of the finetuning."""
    module = make_writer_model(config)
    normalized = config.netrvlad.normalized

    def describe(
        variables: dict, images: jax.Array, binary: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return module.apply(variables, images, binary=binary)

    def sums(
        variables: dict, images: jax.Array, binary: jax.Array, segments: jax.Array
    ) -> jax.Array:
        x, assignment = describe(variables, images, binary)
        centroids = variables["params"]["netrvlad"]["centroids"]
        pages = page_sum(assignment, x, centroids, segments, normalized)
        return pages.reshape(pages.shape[0], -1)

    centroids = np.asarray(variables["params"]["netrvlad"]["centroids"])
    return Model(name, "netrvlad", source, variables, describe, sums, centroids, normalized)


def load_models(config: ConfigDict) -> list[Model]:
    """The model of `config.checkpoint`, then those of `config.compare`.

    Raises:
      UserError: a checkpoint that is not there; unknown names in `input` or `compare`.
    """
    if config.input not in INPUTS:
        raise UserError(f"unknown config.input {config.input!r}, known: {', '.join(INPUTS)}")
    unknown = sorted(set(config.compare) - set(COMPARE))
    if unknown:
        raise UserError(f"unknown config.compare {unknown[0]!r}, known: {', '.join(COMPARE)}")
    folder = Path(config.checkpoint)
    variables, meta = load_variables(folder, KINDS, config.which)
    run = _run_config(folder, config)
    if meta["kind"] == "writer":
        source = run.input if config.input == "auto" else config.input
        models = [netrvlad_model("finetuned", run, variables, source)]
        begun_from = Path(run.init_from) if run.init_from else None
    else:
        source = "page" if config.input == "auto" else config.input
        models = [cls_model("pretrained", run, variables, source)]
        begun_from = folder
    begun = _run_config(begun_from, config) if begun_from else run
    if "pretrained" in config.compare and begun_from and models[0].name != "pretrained":
        given, _ = load_variables(begun_from, KINDS)
        models.append(cls_model("pretrained", begun, given, source))
    if "random" in config.compare:
        models.append(cls_model("random", begun, _untrained(begun), source))
    return models


def _run_config(folder: Path, config: ConfigDict) -> ConfigDict:
    """The config of a run, with the precision that embeds."""
    run = read_config(folder)
    run.precision = precision.resolve(config).precision
    return run


def _untrained(run: ConfigDict) -> dict:
    """The model as it was before the first update of a run that started from scratch."""
    if run.stage == "pretrain":
        return jax.jit(lambda: pretrain.init_variables(run, jax.random.key(run.seed)))()
    size = run.model.patch_size
    images, binary = jnp.zeros((1, size, size, 3)), jnp.zeros((1, size, size, 1))
    model = make_writer_model(run)
    return jax.jit(lambda: model.init(jax.random.key(run.seed), images, binary=binary))()


class Embedder:
    """Runs all models on batches of patches and adds the results up by page."""

    def __init__(
        self, models: Sequence[Model], batch_size: int, pages: int, mesh_config: ConfigDict
    ) -> None:
        self._models, self._b, self._s = models, batch_size, pages
        self._mesh = sharding.make_mesh(mesh_config)
        sharding.local_batch_size(batch_size)
        whole = sharding.replicated(self._mesh)
        self._variables = [jax.device_put(model.variables, whole) for model in models]

        def compute(variables: list[dict], batch: dict) -> list[jax.Array]:
            images, binary = augment.decode(batch)
            inputs = {"page": images, "binary": jnp.broadcast_to(binary, images.shape)}
            inputs = {name: augment.normalize(x) for name, x in inputs.items()}
            segments = batch["segments"].T
            return [
                m.sums(v, inputs[m.input], binary, segments)
                for m, v in zip(models, variables, strict=True)
            ]

        self._compute = jax.jit(compute, out_shardings=whole)

    def sums(self, cuts: Iterator[Cut]) -> Iterator[list[np.ndarray]]:
        """For each page's patches, in order, the sums of each model: arrays [d].

        A page of no patches gives zeros.
        """
        totals: dict[int, list[np.ndarray]] = {}
        begun, given = 0, 0
        pending = None
        for rows, ended in self._batches(cuts):
            result = self._start(rows) if rows else None
            self._collect(pending, totals)
            pending = (rows, result)
            # Pages whose last patches are in a batch that has been collected are whole.
            while given < begun:
                yield totals.pop(given, None) or self._zeros()
                given += 1
            begun = ended
        self._collect(pending, totals)
        while given < begun:
            yield totals.pop(given, None) or self._zeros()
            given += 1

    def _zeros(self) -> list[np.ndarray]:
        return [np.zeros(model.dim, np.float32) for model in self._models]

    def _batches(self, cuts: Iterator[Cut]) -> Iterator[tuple[list, int]]:
        """Pieces (page, cut, first, last) that fill a batch, and how many pages end in it."""
        rows, filled, ended = [], 0, 0
        for page, cut in enumerate(cuts):
            first, n = 0, len(cut.patches)
            while first < n:
                if filled == self._b or len(rows) == self._s:
                    yield rows, ended
                    rows, filled = [], 0
                last = min(n, first + self._b - filled)
                rows.append((page, cut, first, last))
                filled += last - first
                first = last
            ended = page + 1
        yield rows, ended

    def _start(self, rows: list[tuple[int, Cut, int, int]]) -> list[jax.Array]:
        """Sends a batch to the device, filled up with blank patches of weight zero."""
        cut = rows[0][1]
        patches = np.zeros((self._b, *cut.patches.shape[1:]), np.uint8)
        ink = np.zeros((self._b, *cut.ink.shape[1:]), np.uint8)
        segments = np.zeros((self._b, self._s), np.float32)
        at = 0
        for s, (_, cut, first, last) in enumerate(rows):
            end = at + last - first
            patches[at:end], ink[at:end] = cut.patches[first:last], cut.ink[first:last]
            segments[at:end, s] = 1.0
            at = end
        batch = {"patches": patches, "ink": ink, "segments": segments}
        return self._compute(self._variables, sharding.to_device(batch, self._mesh))

    def _collect(self, pending: tuple | None, totals: dict[int, list[np.ndarray]]) -> None:
        if pending is None or pending[1] is None:
            return
        rows, result = pending
        arrays = [np.asarray(array) for array in result]
        for s, (page, *_) in enumerate(rows):
            found = [array[s] for array in arrays]
            if page in totals:
                found = [a + b for a, b in zip(totals[page], found, strict=True)]
            totals[page] = found


def run(config: ConfigDict, workdir: Path) -> int:
    """Embeds all pages; returns the number of pages that were skipped.

    Groups of pages are kept in `workdir/groups` until all are there, so that a killed run goes on;
    they belong to one set of models, pages and settings.
    """
    models = load_models(config)
    manifest = load_manifest(config.data)
    rule = Rule.from_config(config.store)
    digests = [params_digest(model.variables) for model in models]
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    made_from = _identity(config, manifest, rule, models, digests, masks)
    if _made_from(workdir) == made_from:
        skipped = _read_skipped(workdir / "skipped.csv")
        print(f"{workdir} holds these embeddings already")
        print(f"next: {NEXT} --config.embeddings={workdir}")
        return len(skipped)
    widths = [(model.name, model.dim) for model in models]
    groups = Groups(workdir / "groups", made_from, len(manifest), config.pages_per_group, widths)
    embedder = Embedder(models, config.batch_size, config.pages_per_batch, config.mesh)
    print(
        f"embedding {len(manifest):,} pages with {', '.join(m.name for m in models)}"
        + (f"; {groups.pages_done:,} are there already" if groups.pages_done else ""),
        flush=True,
    )
    _embed_missing(config, manifest, rule, embedder, groups, masks)
    counts, reasons, sums = groups.load()
    kept = [i for i, reason in enumerate(reasons) if not reason]
    skipped = [(manifest.pages[i].page_id, r) for i, r in enumerate(reasons) if r]
    if not kept:
        raise UserError(
            f"none of the {len(manifest)} pages of {config.data.pages!r} could be embedded: "
            f"{skipped[0][0]}: {skipped[0][1]}"
        )
    _write_skipped(workdir / "skipped.csv", skipped)
    # The folder that says what all were made from is written last.
    for model, digest, total in reversed(list(zip(models, digests, sums, strict=True))):
        folder = workdir if model is models[0] else workdir / model.name
        meta = {
            "model": model.name,
            "made_from": made_from,
            "checkpoint": digest,
            "checkpoint_folder": str(config.checkpoint),
            "descriptor": model.kind,
            "input": model.input,
            "aggregation": f"sum, power {config.power:g}, L2",
            "power": config.power,
            "patches": [int(counts[i]) for i in kept],
            "precision": precision.resolve(config).precision,
            "store": config.store.to_dict(),
            "regions": masks.identity if masks else {"backend": "none"},
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
        }
        descriptors = l2_normalize(power_norm(total[kept], config.power))
        save_embeddings(folder, descriptors, [manifest.pages[i] for i in kept], manifest.root, meta)
    groups.remove()
    print(f"{len(kept):,} pages embedded ({int(counts.sum()):,} patches) in {workdir}")
    if skipped:
        print(f"{len(skipped):,} pages skipped, listed in {workdir / 'skipped.csv'}: "
              f"{skipped[0][0]}: {skipped[0][1]}")  # fmt: skip
    print(f"next: {NEXT} --config.embeddings={workdir}")
    return len(skipped)


def _embed_missing(
    config: ConfigDict,
    manifest: Manifest,
    rule: Rule,
    embedder: Embedder,
    groups: Groups,
    masks: RegionMasks | None,
) -> None:
    """Cuts and embeds the pages of all groups that are not there yet."""
    found = masks.ensure() if masks else None
    todo = [i for g in groups.missing() for i in groups.pages_of(g)]
    counts: list[int] = []
    reasons: list[str] = []

    def cuts() -> Iterator[Cut]:
        pages = [manifest.pages[i] for i in todo]
        empty = Cut(*(np.zeros((0, 1), np.uint8),) * 4, None)
        for cut in stream_cuts(
            manifest.root,
            pages,
            rule,
            config.data.max_pixels,
            config.store.workers,
            None if found is None else [found[i] for i in todo],
        ):
            unreadable = isinstance(cut, str)
            counts.append(0 if unreadable else len(cut.patches))
            blank = "no patch passed the rule (a blank page?)" if not counts[-1] else ""
            reasons.append(cut if unreadable else blank)
            yield empty if unreadable else cut

    began = last = time.monotonic()
    held: list[list[np.ndarray]] = []
    for done, page_sums in enumerate(embedder.sums(cuts()), start=1):
        held.append(page_sums)
        group = groups.of_page(todo[done - 1])
        if done == len(todo) or groups.of_page(todo[done]) != group:
            n = len(held)
            groups.write(group, held, counts[done - n : done], reasons[done - n : done])
            held = []
        now = time.monotonic()
        if now - last > _LOG_SECONDS:
            last = now
            eta = duration((now - began) / done * (len(todo) - done))
            rate = sum(counts[:done]) / (now - began)
            print(f"{done:,}/{len(todo):,} pages  {rate:,.0f} patches/s  ETA {eta}", flush=True)


def _identity(
    config: ConfigDict,
    manifest: Manifest,
    rule: Rule,
    models: Sequence[Model],
    digests: list[str],
    masks: RegionMasks | None,
) -> str:
    """SHA-256 over all that decides the embeddings: pages, their contents, rule, masks, models."""
    contents = fingerprints(
        manifest.root,
        (page.path for page in manifest.pages),
        Path(config.store.root) / FINGERPRINTS,
    )
    decides = {
        "pages": [[*page, contents[page.path]] for page in manifest.pages],
        "rule": dataclasses.asdict(rule),
        "max_pixels": config.data.max_pixels,
        "models": [[m.name, m.input, d] for m, d in zip(models, digests, strict=True)],
        "precision": precision.resolve(config).precision,
        "power": config.power,
        "pages_per_group": config.pages_per_group,
        **({"regions": [masks.identity, masks.digests]} if masks else {}),
    }
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _made_from(folder: Path) -> str:
    """What the embeddings in a folder were made from; empty where there are none."""
    try:
        return json.loads((folder / "meta.json").read_text()).get("made_from", "")
    except (OSError, ValueError):
        return ""


def _read_skipped(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _write_skipped(path: Path, skipped: Sequence[tuple[str, str]]) -> None:
    with replacing(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(("page_id", "reason"))
        writer.writerows(skipped)
