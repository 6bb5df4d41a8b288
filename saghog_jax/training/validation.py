"""Evaluation inside of training: which pages are held out, and how well a model does on them.

The held-out pages are a plan that is drawn once, sorted, and stored in the run folder; patches of
them are never trained on. Axis letters: p held-out pages, k patches of a page, m pages of a device
batch, b = m * k, d width of a page descriptor.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed, sharding
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import replacing
from saghog_jax.input_pipeline.pages.manifest import Page, load_manifest
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm
from saghog_jax.retrieval.metrics import encode_labels, evaluate, summarize
from saghog_jax.retrieval.ranking import score_rows

MONITORS = ("map", "loss")
_BATCH_ROWS = 512
_POWER = 0.4  # Of page descriptors, as in the paper.


@dataclass(frozen=True)
class HeldOut:
    """Patches of held-out pages: uint8 [p, k, ...], weight float32 [p, k] (0 fills up), writers."""

    patches: np.ndarray
    ink: np.ndarray
    weight: np.ndarray
    writers: tuple[str, ...]

    @property
    def queries(self) -> int:
        """Pages that another page of their writer can be found for."""
        known = [writer for writer in self.writers if writer]
        return sum(known.count(writer) > 1 for writer in known)


def plan(config: ConfigDict, folder: Path, pages: Sequence[Page]) -> frozenset[str]:
    """Ids of the held-out pages: those stored in the run folder, else a new draw, stored there.

    All pages of a held-out writer are held out; of pages without a writer each is drawn by itself.

    Args:
      config: `validation.share`, of the writers and of the pages without one; 0 holds out none.
      folder: the run folder.
      pages: all pages of the stage.

    Raises:
      UserError: a share out of its range, or too few writers and pages for it.
    """
    share = config.validation.share
    if not 0 <= share < 1:
        raise UserError(f"config.validation.share={share} must be at least 0 and below 1")
    if not share:
        return frozenset()
    path = folder / "validation.json"

    def find() -> list[str]:
        if not path.exists():
            drawn = _draw(share, config.seed, pages)
            with replacing(path, "w") as file:
                json.dump({"share": share, "seed": config.seed, **drawn}, file, indent=1)
        return json.loads(path.read_text())["pages"]

    held_out = frozenset(distributed.main_first(find))
    if not any(page.page_id not in held_out for page in pages):
        raise UserError(f"{path} holds out all {len(pages)} pages: none is left to train on")
    return held_out


def _draw(share: float, seed: int, pages: Sequence[Page]) -> dict[str, list[str]]:
    rng = np.random.default_rng([seed, 1])
    writers = sorted({page.writer for page in pages} - {""})
    anonymous = sorted(page.page_id for page in pages if not page.writer)
    # One writer's pages would all be found without fail.
    chosen = _some(rng, writers, share, least=2)
    alone = _some(rng, anonymous, share, least=0 if writers else 1)
    if len(chosen) >= max(len(writers), 1) or (not writers and len(alone) >= len(anonymous)):
        raise UserError(
            f"config.validation.share={share}: {len(writers)} writers and {len(anonymous)} pages "
            "without one are too few to hold some out; give more, or set it to 0"
        )
    ids = [page.page_id for page in pages if page.writer in chosen or page.page_id in alone]
    return {"writers": sorted(chosen), "pages": sorted(ids)}


def _some(rng: np.random.Generator, names: list[str], share: float, least: int) -> set[str]:
    count = min(len(names), max(least, round(share * len(names))))
    return {names[i] for i in rng.choice(len(names), count, replace=False)}


def belongs(store: Store, held_out: frozenset[str]) -> np.ndarray:
    """Whether each patch of a store is one of a held-out page, bool [n]."""
    of_page = np.array([page.page_id in held_out for page in store.manifest.pages], bool)
    return of_page[store.index["page"]]


def from_store(store: Store, held_out: frozenset[str], per_page: int) -> HeldOut:
    """At most `per_page` patches of each held-out page of a store, evenly picked."""

    def cuts() -> Iterator[tuple[Page, np.ndarray, np.ndarray]]:
        for page, rows in zip(store.manifest.pages, store.rows_of_pages, strict=True):
            if page.page_id in held_out and len(rows):
                found = store.gather(rows[evenly(len(rows), per_page)])
                yield page, found["patches"], found["ink"]

    return _stack(cuts(), per_page)


def from_pages(config: ConfigDict, held_out: frozenset[str]) -> HeldOut:
    """The same for a config of configs/pretrain.py, cut from the pages that can be read."""
    manifest = load_manifest(config.data)
    pages = tuple(page for page in manifest.pages if page.page_id in held_out)
    manifest = replace(manifest, pages=pages)
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    per_page = config.validation.patches_per_page

    def cuts() -> Iterator[tuple[Page, np.ndarray, np.ndarray]]:
        found = stream_cuts(
            manifest.root,
            pages,
            Rule.from_config(config.store),
            config.data.max_pixels,
            config.store.workers,
            masks.ensure(print) if masks else None,
        )
        for page, (cut,) in zip(pages, found, strict=True):
            if isinstance(cut, Cut) and len(cut.patches):
                chosen = evenly(len(cut.patches), per_page)
                yield page, cut.patches[chosen], cut.ink[chosen]

    return _stack(cuts(), per_page)


def _stack(cuts: Iterator[tuple[Page, np.ndarray, np.ndarray]], per_page: int) -> HeldOut:
    found = list(cuts)
    if not found:
        raise UserError(
            "none of the held-out pages gives a patch; set --config.validation.share to 0, or to "
            "more"
        )

    def filled(rows: np.ndarray) -> np.ndarray:
        return rows[np.arange(per_page) % len(rows)]

    return HeldOut(
        patches=np.stack([filled(patches) for _, patches, _ in found]),
        ink=np.stack([filled(ink) for *_, ink in found]),
        weight=np.stack([np.arange(per_page) < len(p) for _, p, _ in found]).astype(np.float32),
        writers=tuple(page.writer for page, *_ in found),
    )


# What a task computes of a batch of held-out patches: `sums` [m, d], the sums of L2-normalised
# descriptors by page, and where it has such a thing `errors` [b], the loss of each patch.
Validate = Callable[[dict, dict, jax.Array, jax.Array], dict[str, jax.Array]]


class Evaluator:
    """Figures of a model on held-out pages.

    Args:
      held_out: the patches.
      validate: `validate(variables, batch, segments, rng)`; batch as loaded, segments [m, b].
      mesh: that of the run; every process does its rows.
      seed: of the noise of the loss, which is the same at every evaluation.

    Raises:
      UserError: `monitor` needs writers, or a loss, where there are none.
    """

    def __init__(
        self, held_out: HeldOut, validate: Validate, mesh: jax.sharding.Mesh, seed: int
    ) -> None:
        self._held_out, self._mesh = held_out, mesh
        p, k = held_out.weight.shape
        # So many pages that the devices share their patches evenly.
        least = mesh.size // math.gcd(mesh.size, k)
        self._m = least * max(1, min(_BATCH_ROWS // (k * least), -(-p // least)))

        def compute(variables: dict, batch: dict) -> dict[str, jax.Array]:
            weight = batch.pop("weight")
            page = jnp.arange(weight.shape[0]) // k
            segments = jnp.where(page == jnp.arange(self._m)[:, None], weight, 0.0)
            found = validate(variables, batch, segments, jax.random.key(seed))
            if "errors" in found:
                found["errors"] = jnp.sum(found["errors"] * weight)
            return found

        self._compute = jax.jit(compute, out_shardings=sharding.replicated(mesh))

    def __call__(self, variables: dict) -> dict[str, float]:
        """`validation_map`, `validation_top1` where writers are known, `validation_loss`."""
        running = [self._compute(variables, batch) for batch in self._batches()]
        found = [jax.device_get(part) for part in running]
        figures = {}
        if self._held_out.queries:
            sums = np.concatenate([part["sums"] for part in found])[: len(self._held_out.writers)]
            descriptors = l2_normalize(power_norm(sums, _POWER))
            labels = encode_labels(np.array(self._held_out.writers))
            summary = summarize(evaluate(score_rows(descriptors), labels))
            figures = {f"validation_{key}": summary[key] for key in ("map", "top1")}
        if "errors" in found[0]:
            total = sum(float(part["errors"]) for part in found)
            figures["validation_loss"] = total / float(self._held_out.weight.sum())
        # One process decides for all: what follows must not depend on the last bit.
        values = distributed.broadcast(np.array(list(figures.values()), np.float64))
        return dict(zip(figures, values.tolist(), strict=True))

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        held_out, m = self._held_out, self._m
        rows = len(held_out.weight)
        share = m * held_out.weight.shape[1] // jax.process_count()
        mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        for first in range(0, rows, m):
            chosen = np.arange(first, first + m)
            weight = held_out.weight[chosen % rows] * (chosen < rows)[:, None]
            batch = {
                "patches": held_out.patches[chosen % rows],
                "ink": held_out.ink[chosen % rows],
                "weight": weight.astype(np.float32),
            }
            flat = {key: x.reshape(-1, *x.shape[2:])[mine] for key, x in batch.items()}
            yield sharding.to_device(flat, self._mesh)


def check(config: ConfigDict, held_out: HeldOut, has_loss: bool) -> None:
    """Whether the figure that is monitored exists; says what is not computed.

    Raises:
      UserError: it does not, or there is no such figure.
    """
    monitor = config.validation.monitor
    if monitor not in MONITORS:
        raise UserError(
            f"unknown config.validation.monitor {monitor!r}, known: {', '.join(MONITORS)}"
        )
    if monitor == "loss" and not has_loss:
        raise UserError("config.validation.monitor=loss is for pretraining; finetuning has map")
    if held_out.queries:
        return
    if monitor == "map":
        raise UserError(
            "config.validation.monitor=map needs held-out writers with several pages, and none is "
            "known; give --config.data.writer_regex or a manifest with writers, or set "
            "--config.validation.share to 0"
        )
    if distributed.is_main():
        print("no held-out writer has several pages: only the loss is evaluated, no mAP")
