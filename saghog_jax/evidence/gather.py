"""The evidence pass: cuts and describes again the pages of a few matches, to say what makes them.

For each match it finds what every patch of the two pages contributes and which patches are alike
(retrieval/attribution.py), and keeps both in `evidence/QUERY_RANK.npz` beside the results.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.embedding import sift
from saghog_jax.embedding.describer import Describer
from saghog_jax.embedding.describers import COMPARE, Model, load_models, rule_of
from saghog_jax.evidence.attribution import Clusters, Part, contributions, like_patches, page_total
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import replacing
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.reports.evidence import Evidence, PageEvidence
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm, side_by_side
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.whitening import Whitening
from saghog_jax.runs.checkpoint import params_digest
from saghog_jax.runs.metrics_log import Pace

FOLDER = "evidence"
# Pages of the gallery that the average page is made of, at most, and values held for it at a time.
_AVERAGED = 10_000
_VALUES = 1 << 24
# What meta.json must tell so that pages can be described again.
_NEEDED = (
    *("model", "checkpoint_folder", "which", "input", "precision"),
    *("store", "regions_config", "pooling", "patch_whitening", "power"),
)
# A page whose descriptor comes out less alike than this is not the page that was embedded.
_SAME_PAGE = 0.99
# So that progress is seen in a log file too.
_say = partial(print, flush=True)


@dataclass(frozen=True)
class Compared:
    """What was compared: pages, and the descriptors that ranked them (before re-ranking)."""

    queries: Embeddings
    gallery: Embeddings  # the same object where pages are compared among themselves
    query_descriptors: np.ndarray  # float32 [q, k]
    gallery_descriptors: np.ndarray  # float32 [p, k]
    whitening: Whitening | None
    ranking: Ranking


def gather(
    compared: Compared,
    order: Sequence[int],
    config: ConfigDict,
    workdir: Path,
    log: Callable[[str], None] = _say,
) -> dict[tuple[int, int], Evidence]:
    """Evidence for the first matches of some queries, by rows of query and gallery.

    Args:
      order: queries, those first that need a look first.
      config: the section `report`.
      workdir: the arrays go to its folder `evidence`, which is emptied first.

    Returns:
      nothing where it is off, or where the model is not there any more (`log` says so).

    Raises:
      UserError: a page of `evidence.of` that is not among the queries; another model than the one
        that made the embeddings.
    """
    folder = workdir / FOLDER
    for stale in folder.glob("*.npz"):
        stale.unlink()
    asked = _asked(compared.queries, order, config.evidence)
    wanted = [
        (row, other, rank)
        for row in asked
        for rank, (other, _) in enumerate(compared.ranking.hits(row), start=1)
        if rank <= config.evidence.matches
    ]
    if not wanted:
        return {}
    metas = compared.queries.meta, compared.gallery.meta
    lacking = [name for name in _NEEDED for meta in metas if name not in meta]
    if lacking:
        log(f"note: no evidence in the report: meta.json of the embeddings has no {lacking[0]!r}")
        return {}
    # Of other poolings, and of patches that are whitened, a page is no sum of unit vectors.
    kinds = {(meta["pooling"], meta["patch_whitening"]) for meta in metas}
    if not kinds <= {("sum", "none"), ("mean", "none")}:
        log("note: no evidence in the report: it needs pooling sum or mean, no patch whitening")
        return {}
    models, why = _models(compared.gallery.meta, config.evidence.checkpoint)
    if not models:
        log(f"note: no evidence in the report: {why}")
        return {}
    log(f"evidence: describing the pages of {len(wanted)} matches again, patch by patch")
    pages = _Pages(compared, models, config.max_pixels)
    pages.read({r for r, _, _ in wanted}, {o for _, o, _ in wanted}, log)
    mean = _average(compared.gallery_descriptors)
    found: dict[tuple[int, int], Evidence] = {}
    for row, other, rank in wanted:
        evidence = pages.evidence(row, other, mean, config.evidence.pairs)
        if evidence is not None:
            found[row, other] = evidence
            _save(folder / f"{row:05d}_{rank}.npz", evidence, compared, row, other)
    for name, reason in pages.failed.items():
        log(f"note: no evidence for {name}: {reason}")
    return found


def _average(descriptors: np.ndarray) -> np.ndarray:
    """Mean of the unit rows [p, k], of evenly picked ones where there are very many."""
    rows = np.unique(np.linspace(0, len(descriptors) - 1, _AVERAGED).astype(int))
    step = max(1, _VALUES // descriptors.shape[1])
    parts = (descriptors[rows[i : i + step]] for i in range(0, len(rows), step))
    return sum(l2_normalize(part).sum(0) for part in parts) / np.float32(len(rows))


def _asked(queries: Embeddings, order: Sequence[int], config: ConfigDict) -> list[int]:
    for name in ("queries", "matches", "pairs"):
        if config[name] < 0:
            raise UserError(f"config.report.evidence.{name}={config[name]}: at least 0")
    if not config.of:
        return list(order[: config.queries])
    rows = {str(name): row for row, name in enumerate(queries.page_ids)}
    unknown = [name for name in config.of if name not in rows]
    if unknown:
        raise UserError(
            f"config.report.evidence.of names {unknown[0]!r}, which is no page of {queries.folder}"
        )
    return [rows[name] for name in config.of]


def _models(meta: Mapping, checkpoint: str) -> tuple[list[Model], str]:
    """The model that made the embeddings, and SIFT where it stands beside; or why there is none."""
    folder = checkpoint or meta["checkpoint_folder"]
    name = meta["model"]
    config = ConfigDict(
        {
            "checkpoint": folder,
            "which": meta["which"],
            "compare": (name,) if name in COMPARE else (),
            "sift": _shares(meta),
            "input": meta["input"],
            "precision": meta["precision"],
        }
    )
    try:
        models = load_models(config)
    except UserError as error:
        if checkpoint:
            raise
        return [], f"{error} (config.report.evidence.checkpoint says where the model is)"
    beside = meta.get("sift_words", {})
    wanted = {name: meta["checkpoint"]} | {sift.name(k): v for k, v in beside.items()}
    found = [m for m in models if params_digest(m.variables) == wanted.get(m.name)]
    if len(found) < len(wanted):
        problem = f"{folder} does not hold the model that made the embeddings"
        if checkpoint:
            raise UserError(problem)
        return [], problem
    return found, ""


def _shares(meta: Mapping) -> dict[str, float]:
    """The share of each kind of SIFT beside the model."""
    return dict.fromkeys(sift.KINDS, 0.0) | meta.get("sift", {})


class _Pages:
    """The pages of the wanted matches: their patches, descriptors and evidence."""

    def __init__(self, compared: Compared, models: Sequence[Model], max_pixels: int) -> None:
        self._compared, self._max_pixels = compared, max_pixels
        self._clusters = [Clusters(m.centroids, m.intra_normalize) for m in models]
        self._models = models
        self._describers = [Describer(model) for model in models]
        self._known: dict[tuple[bool, int], _Described] = {}
        self.failed: dict[str, str] = {}

    def _key(self, row: int, of_query: bool) -> tuple[bool, int]:
        return of_query and self._compared.queries is not self._compared.gallery, row

    def read(
        self, queries: Iterable[int], gallery: Iterable[int], log: Callable[[str], None]
    ) -> None:
        """Cuts and describes pages; those that cannot be go to `failed`."""
        keys = {self._key(r, True) for r in queries} | {self._key(r, False) for r in gallery}
        pace, done = Pace(len(keys)), 0
        for of_query in sorted({of_query for of_query, _ in keys}):
            source = self._compared.queries if of_query else self._compared.gallery
            rows = sorted(row for is_query, row in keys if is_query == of_query)
            store = ConfigDict(source.meta["store"])
            rule = rule_of(store, self._models)
            root = source.folder / source.meta["pages_root"]
            manifest = Manifest(root, tuple(_page(source, row) for row in rows), ())
            masks = open_masks(
                manifest, self._max_pixels, ConfigDict(source.meta["regions_config"])
            )
            found = masks.ensure(lambda line: None) if masks else None
            scales = source.meta.get("scales", [1.0])
            found = [mask for mask in found for _ in scales] if found else None
            views = manifest.at_scales(scales).pages
            factors = iter([rule.scale * view.scale for view in views])
            cuts = stream_cuts(root, views, rule, self._max_pixels, store.workers, found)
            for row in rows:
                cut = [next(cuts)[0] for _ in scales]
                self._take(
                    source, row, of_query, cut, rule.patch_size, [next(factors) for _ in scales]
                )
                done += 1
                if due := pace.due(done):
                    log(f"{done:,}/{len(keys):,} pages  ETA {due[1]}")

    def _take(
        self,
        source: Embeddings,
        row: int,
        of_query: bool,
        cuts: list[Cut | str],
        side: int,
        factors: list[float],
    ) -> None:
        name = str(source.page_ids[row])
        if all(isinstance(cut, str) for cut in cuts):
            self.failed[name] = cuts[0]
            return
        # At a scale at which it could not be cut a page has no patch, as in embedding.
        usable = next(cut for cut in cuts if not isinstance(cut, str))
        nothing = usable.take(slice(0))
        cuts = [nothing if isinstance(cut, str) else cut for cut in cuts]
        parts = self._parts(source.meta, cuts, side)
        mine = side_by_side(
            [l2_normalize(power_norm(part.total[None], part.power)) for part in parts],
            [part.share for part in parts],
        )[0]
        if mine @ np.asarray(source.descriptors[row]) < _SAME_PAGE:
            self.failed[name] = "the image has changed since it was embedded"
            return
        self._known[of_query, row] = _Described(parts, factors)

    def _parts(self, meta: Mapping, cuts: Sequence[Cut], side: int) -> list[Part]:
        """A page's parts as `embed` puts them side by side: each model's, scale by scale."""
        shares = _shares(meta)
        settings = [(meta["power"], 1 - sum(shares.values()))]
        settings += [(sift.POWER, share) for share in shares.values() if share]
        parts = []
        for describer, clusters, (power, share) in zip(self._describers, self._clusters, settings):
            for cut in cuts:
                page = describer.page(cut, side)
                total = page_total(page, clusters)
                parts.append(Part(page, clusters, total, power, share / len(cuts)))
        return parts

    def evidence(self, row: int, other: int, mean: np.ndarray, at_most: int) -> Evidence | None:
        """The evidence of one match; None where a page of it could not be read.

        Like patches are those of the first scale; all contribute.
        """
        keys = self._key(row, True), self._key(other, False)
        if any(key not in self._known for key in keys):
            return None
        pages = [self._known[key] for key in keys]
        z = [
            l2_normalize(np.asarray(x[r]))
            for x, r in (
                (self._compared.query_descriptors, row),
                (self._compared.gallery_descriptors, other),
            )
        ]
        speak = [
            page.speak(contributions(page.parts, x - mean, self._compared.whitening))
            for page, x in zip(pages, reversed(z), strict=True)
        ]
        first = [page.parts[0].page for page in pages]
        pairs, cosines = like_patches(
            *first,
            *(s[: len(p.place)] for s, p in zip(speak, first, strict=True)),
            self._clusters[0],
            at_most,
        )
        sides = [
            PageEvidence(*page.places(), s, float(x @ mean))
            for page, s, x in zip(pages, speak, z, strict=True)
        ]
        return Evidence(float(z[0] @ z[1]), *sides, pairs, cosines)


class _Described(NamedTuple):
    """The parts of a page, each model's scale by scale, and the factors that it was resized by."""

    parts: list[Part]
    factors: list[float]

    def speak(self, shares: list[np.ndarray]) -> np.ndarray:
        """What each patch contributes by all models, those of the first scale first."""
        scales = len(self.factors)
        return np.concatenate([sum(shares[j::scales]) for j in range(scales)])

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Places [n, 2] and sides [n] of the patches in pixels of the page, in the same order."""
        pages = [part.page for part in self.parts[: len(self.factors)]]
        scaled = list(zip(pages, self.factors, strict=True))
        return (
            np.concatenate([(page.place / factor).astype(int) for page, factor in scaled]),
            np.concatenate(
                [np.full(len(page.place), page.side / factor) for page, factor in scaled]
            ),
        )


def _page(source: Embeddings, row: int) -> Page:
    """A row of embeddings as what it was cut as, without its labels."""
    extra = {"scale": str(source.table["scale"][row])} if "scale" in source.table else {}
    return Page(str(source.table["path"][row]), "", "", "", source.box(row), extra)


def _save(path: Path, evidence: Evidence, compared: Compared, row: int, other: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        np.savez(
            file,
            query=np.array(str(compared.queries.page_ids[row])),
            match=np.array(str(compared.gallery.page_ids[other])),
            similarity=np.float32(evidence.similarity),
            query_mean=np.float32(evidence.query.mean),
            match_mean=np.float32(evidence.match.mean),
            query_place=evidence.query.place,
            match_place=evidence.match.place,
            query_contributions=evidence.query.contributions,
            match_contributions=evidence.match.contributions,
            pairs=evidence.pairs,
            cosines=evidence.cosines,
            query_side=evidence.query.side,
            match_side=evidence.match.side,
        )
