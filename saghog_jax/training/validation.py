"""Validation during training: which pages are held out, and the metrics of a model on them.

The held-out pages are drawn once and stored, sorted, in the run folder; their patches are never
trained on. Axis letters: p held-out pages, k patches of a page, m pages of a device
batch, b = m * k, d width of a page descriptor.
"""

import json
import logging
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
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm
from saghog_jax.retrieval.metrics import encode_labels, evaluate, summarize
from saghog_jax.retrieval.ranking import score_rows

logger = logging.getLogger(__name__)

MONITORS = ("map", "loss")
_BATCH_ROWS = 512
_POWER = 0.4  # Exponent of the power normalisation of page descriptors, as in the paper.


@dataclass(frozen=True)
class HeldOut:
    """Patches of held-out pages.

    patches, ink: uint8 [p, k, ...], as `Cut` has them; pages with fewer patches are filled up.
    weight: float32 [p, k], 0 for the patches that fill up.
    writers: of the pages; empty where unknown.
    """

    patches: np.ndarray
    ink: np.ndarray
    weight: np.ndarray
    writers: tuple[str, ...]

    @property
    def queries(self) -> int:
        """Number of pages whose writer has another held-out page."""
        known = [writer for writer in self.writers if writer]
        return sum(known.count(writer) > 1 for writer in known)


def plan(config: ConfigDict, folder: Path, pages: Sequence[Page]) -> frozenset[str]:
    """Ids of the held-out pages, from the run folder; if it has none, they are drawn and stored.

    All pages of a held-out writer are held out; pages without a writer are drawn one by one.

    Args:
      config: `validation.share`, the fraction of the writers and of the pages without a writer.
      folder: the run folder.
      pages: all pages of the stage.

    Raises:
      UserError: the fraction is out of its range, or there are too few writers and pages for it.
    """
    share = config.validation.share
    if not 0 <= share < 1:
        raise UserError(f"config.validation.share={share} must be at least 0 and below 1")
    if not share:
        return frozenset()
    path = folder / "validation.json"

    def stored() -> list[str]:
        if not path.exists():
            drawn = _draw(share, config.seed, pages)
            with atomic_write(path, "w") as file:
                json.dump({"share": share, "seed": config.seed, **drawn}, file, indent=1)
        return json.loads(path.read_text())["pages"]

    held_out = frozenset(distributed.main_first(stored))
    if not any(page.page_id not in held_out for page in pages):
        raise UserError(f"{path} holds out all {len(pages)} pages; no page is left to train on")
    return held_out


def _draw(share: float, seed: int, pages: Sequence[Page]) -> dict[str, list[str]]:
    rng = np.random.default_rng([seed, 1])
    writers = sorted({page.writer for page in pages} - {""})
    anonymous = sorted(page.page_id for page in pages if not page.writer)
    # With one writer alone every query would be answered right.
    held_out_writers = _some(rng, writers, share, least=2)
    held_out_pages = _some(rng, anonymous, share, least=0 if writers else 1)
    if len(held_out_writers) >= max(len(writers), 1) or (
        not writers and len(held_out_pages) >= len(anonymous)
    ):
        raise UserError(
            f"config.validation.share={share}: {len(writers)} writers and {len(anonymous)} pages "
            "without a writer are too few to hold some out; give more pages, or set it to 0"
        )
    ids = [
        page.page_id
        for page in pages
        if page.writer in held_out_writers or page.page_id in held_out_pages
    ]
    return {"writers": sorted(held_out_writers), "pages": sorted(ids)}


def _some(rng: np.random.Generator, names: list[str], share: float, least: int) -> set[str]:
    count = min(len(names), max(least, round(share * len(names))))
    return {names[i] for i in rng.choice(len(names), count, replace=False)}


def held_out_mask(store: Store, held_out: frozenset[str]) -> np.ndarray:
    """Whether each patch of a store belongs to a held-out page, bool [n]."""
    of_page = np.array([page.page_id in held_out for page in store.manifest.pages], bool)
    return of_page[store.index["page"]]


def from_store(store: Store, held_out: frozenset[str], per_page: int) -> HeldOut:
    """At most `per_page` patches of each held-out page of a store, spread evenly."""

    def cuts() -> Iterator[tuple[Page, np.ndarray, np.ndarray]]:
        for page, rows in zip(store.manifest.pages, store.rows_of_pages, strict=True):
            if page.page_id in held_out and len(rows):
                patches = store.gather(rows[evenly(len(rows), per_page)])
                yield page, patches["patches"], patches["ink"]

    return _stack(cuts(), per_page)


def from_pages(config: ConfigDict, held_out: frozenset[str]) -> HeldOut:
    """The same for a config of configs/pretrain.py, cut from the pages that can be read."""
    manifest = load_manifest(config.data, tell=False)
    pages = tuple(page for page in manifest.pages if page.page_id in held_out)
    manifest = replace(manifest, pages=pages)
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    per_page = config.validation.patches_per_page

    def cuts() -> Iterator[tuple[Page, np.ndarray, np.ndarray]]:
        stream = stream_cuts(
            manifest.root,
            pages,
            Rule.from_config(config.store),
            config.data.max_pixels,
            config.store.workers,
            masks.ensure() if masks else None,
        )
        for page, (cut,) in zip(pages, stream, strict=True):
            if isinstance(cut, Cut) and len(cut.patches):
                chosen = evenly(len(cut.patches), per_page)
                yield page, cut.patches[chosen], cut.ink[chosen]

    return _stack(cuts(), per_page)


def _stack(cuts: Iterator[tuple[Page, np.ndarray, np.ndarray]], per_page: int) -> HeldOut:
    cut_pages = list(cuts)
    if not cut_pages:
        raise UserError(
            "no held-out page gives a patch; set --config.validation.share to 0, or higher"
        )

    def filled(rows: np.ndarray) -> np.ndarray:
        return rows[np.arange(per_page) % len(rows)]

    return HeldOut(
        patches=np.stack([filled(patches) for _, patches, _ in cut_pages]),
        ink=np.stack([filled(ink) for *_, ink in cut_pages]),
        weight=np.stack([np.arange(per_page) < len(p) for _, p, _ in cut_pages]).astype(np.float32),
        writers=tuple(page.writer for page, *_ in cut_pages),
    )


# What a task computes of a batch of held-out patches: `sums` [m, d], the sums of L2-normalised
# descriptors by page, and, in pretraining, `errors` [b], the loss of each patch.
Validate = Callable[[dict, dict, jax.Array, jax.Array], dict[str, jax.Array]]


class Evaluator:
    """Computes the metrics of a model on held-out pages.

    Args:
      held_out: the patches.
      validate: `validate(variables, batch, segments, rng)`; batch as loaded, segments [m, b].
      mesh: of the run; every process computes its rows.
      seed: of the noise of the loss, which is the same at every evaluation.
    """

    def __init__(
        self, held_out: HeldOut, validate: Validate, mesh: jax.sharding.Mesh, seed: int
    ) -> None:
        self._held_out, self._mesh = held_out, mesh
        p, k = held_out.weight.shape
        # Pages of a batch: a number whose patches the devices can share evenly.
        least = mesh.size // math.gcd(mesh.size, k)
        self._m = least * max(1, min(_BATCH_ROWS // (k * least), -(-p // least)))

        def compute(variables: dict, batch: dict) -> dict[str, jax.Array]:
            weight = batch.pop("weight")
            page = jnp.arange(weight.shape[0]) // k
            segments = jnp.where(page == jnp.arange(self._m)[:, None], weight, 0.0)
            outputs = validate(variables, batch, segments, jax.random.key(seed))
            if "errors" in outputs:
                outputs["errors"] = jnp.sum(outputs["errors"] * weight)
            return outputs

        self._compute = jax.jit(compute, out_shardings=sharding.replicated(mesh))

    def __call__(self, variables: dict) -> dict[str, float]:
        """`validation_map`, `validation_top1` where writers are known, `validation_loss`."""
        running = [self._compute(variables, batch) for batch in self._batches()]
        outputs = [jax.device_get(part) for part in running]
        figures = {}
        if self._held_out.queries:
            sums = np.concatenate([part["sums"] for part in outputs])[: len(self._held_out.writers)]
            descriptors = l2_normalize(power_norm(sums, _POWER))
            labels = encode_labels(np.array(self._held_out.writers))
            summary = summarize(evaluate(score_rows(descriptors), labels))
            figures = {f"validation_{key}": summary[key] for key in ("map", "top1")}
        if "errors" in outputs[0]:
            total = sum(float(part["errors"]) for part in outputs)
            figures["validation_loss"] = total / float(self._held_out.weight.sum())
        # One process decides for all, so that no decision depends on the last bit.
        values = distributed.broadcast(np.array(list(figures.values()), np.float64))
        return dict(zip(figures, values.tolist(), strict=True))

    def _batches(self) -> Iterator[dict[str, jax.Array]]:
        held_out, m = self._held_out, self._m
        rows = len(held_out.weight)
        share = m * held_out.weight.shape[1] // jax.process_count()
        own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        for first in range(0, rows, m):
            chosen = np.arange(first, first + m)
            weight = held_out.weight[chosen % rows] * (chosen < rows)[:, None]
            batch = {
                "patches": held_out.patches[chosen % rows],
                "ink": held_out.ink[chosen % rows],
                "weight": weight.astype(np.float32),
            }
            flat = {key: x.reshape(-1, *x.shape[2:])[own] for key, x in batch.items()}
            yield sharding.to_device(flat, self._mesh)


def check(config: ConfigDict, held_out: HeldOut, has_loss: bool) -> None:
    """Checks that the monitored metric can be computed; logs which metrics cannot.

    Raises:
      UserError: it cannot, or the metric is unknown.
    """
    monitor = config.validation.monitor
    check_choice("config.validation.monitor", monitor, MONITORS)
    if monitor == "loss" and not has_loss:
        raise UserError("config.validation.monitor=loss is for pretraining; finetuning has map")
    if held_out.queries:
        return
    if monitor == "map":
        raise UserError(
            "config.validation.monitor=map needs held-out writers with several pages, and there is "
            "none; give --config.data.writer_regex or a manifest with writers, or set "
            "--config.validation.share to 0"
        )
    if distributed.is_main():
        logger.info("no held-out writer has several pages: only the loss is evaluated, no mAP")
