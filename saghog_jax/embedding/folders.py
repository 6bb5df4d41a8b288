"""The folders that `embed` leaves: page descriptors of each model, and what is known of pages."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import precision
from saghog_jax.embedding import patch_whitening
from saghog_jax.embedding import sift as patch_sift
from saghog_jax.embedding.describers import Model
from saghog_jax.embedding.journal import PageResult, Parts
from saghog_jax.input_pipeline.files import replacing
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.next_command import next_command
from saghog_jax.retrieval import exports, whitening
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm, side_by_side
from saghog_jax.retrieval.embeddings import load_embeddings, relabel, save_embeddings

# Columns that are added to the manifest.
COUNTS = ("patch_count", "ink_pixels")
# Pages whose descriptors are held at a time.
_BLOCK_PAGES = 256


@dataclass(frozen=True)
class Embedded:
    """All views (pages at their scales) that were embedded, and by what.

    digests: of the weights of each model; whitenings: of the patches of each.
    results: by view; a page's are next to each other.
    input_digest: what `input_digest` returns once all is written.
    regions: what handwriting was looked for with.
    """

    config: ConfigDict
    manifest: Manifest
    models: Sequence[Model]
    digests: Sequence[str]
    whitenings: Sequence[whitening.Whitening | None]
    parts: Parts
    results: dict[int, PageResult]
    input_digest: str
    regions: dict

    @property
    def skipped(self) -> dict[int, str]:
        """Why pages are skipped, by page: at no scale has the page a patch."""
        scales, found = len(self.config.scales), {}
        for page in range(len(self.manifest)):
            reasons = [self.results[page * scales + j].reason for j in range(scales)]
            if all(reasons):
                found[page] = reasons[0]
        return found


def listed(scales: Sequence[float]) -> str:
    """Scales as they are read aloud."""
    return ", ".join(f"{scale:g}" for scale in scales)


def write(done: Embedded, workdir: Path) -> None:
    """Writes the embeddings folders; the one that says what all were made from last."""
    config, pages = done.config, done.manifest.pages
    skipped = done.skipped
    kept = [i for i in range(len(pages)) if i not in skipped]
    counts = {i: done.results[i * len(config.scales)] for i in kept}
    few = [i for i in kept if counts[i].patches < config.few_patches]
    reasons = [(pages[i].page_id, reason) for i, reason in skipped.items()]
    _write_rows(workdir / "skipped.csv", ("page_id", "reason"), reasons)
    _write_rows(
        workdir / "few_patches.csv",
        ("page_id", *COUNTS),
        [(pages[i].page_id, counts[i].patches, counts[i].ink) for i in few],
    )
    counted = [
        page._replace(extra=page.extra | dict(zip(COUNTS, (str(r.patches), str(r.ink)))))
        for page, r in ((pages[i], counts[i]) for i in kept)
    ]
    where = folders(config, done.models, workdir)
    for i, folder in reversed(where):
        fitted = done.whitenings[i]
        if fitted is not None:
            whitening.save(fitted, folder / patch_whitening.FILE, done.digests[i])
        columns = _columns(done, i)
        meta = _meta(done, i, columns) | {"patches": [counts[i].patches for i in kept]}
        blocks = _page_blocks(done.parts, kept, len(config.scales), columns)
        save_embeddings(folder, blocks, counted, done.manifest.root, meta)
    export(config, where)
    patches = sum(result.patches for result in done.results.values())
    print(f"{len(kept):,} pages embedded ({patches:,} patches) in {workdir}")
    if few:
        print(
            f"warning: {len(few):,} pages have fewer than {config.few_patches} patches, too little "
            f"writing to judge; listed in {workdir / 'few_patches.csv'}: {pages[few[0]].page_id}: "
            f"{counts[few[0]].patches}"
        )
    if reasons:
        print(
            f"{len(reasons):,} pages skipped, listed in {workdir / 'skipped.csv'}: "
            f"{reasons[0][0]}: {reasons[0][1]}"
        )
    print(f"next: {next_command('retrieve', workdir=workdir, embeddings=workdir)}")


class _Column(NamedTuple):
    """A model whose page descriptors stand in a folder: its number, power and share.

    sift: which of `patch_sift.KINDS` stands beside the folder's own model; that has none.
    """

    model: int
    power: float
    share: float
    sift: str = ""


def _columns(done: Embedded, first: int) -> list[_Column]:
    """The model of a folder and, beside that of the checkpoint and no other, those of SIFT."""
    names = [model.name for model in done.models]
    beside = {} if first else {k: s for k, s in done.config.sift.items() if s}
    fixed = names[first] in map(patch_sift.name, patch_sift.KINDS)
    power = patch_sift.POWER if fixed else done.config.power
    columns = [_Column(first, power, 1 - sum(beside.values()))]
    for kind in (kind for kind in patch_sift.KINDS if kind in beside):
        number = names.index(patch_sift.name(kind))
        columns.append(_Column(number, patch_sift.POWER, beside[kind], kind))
    return columns


def _meta(done: Embedded, number: int, columns: Sequence[_Column]) -> dict:
    """What meta.json of a model's folder says, but for its pages (docs/formats.md)."""
    config, model, fitted = done.config, done.models[number], done.whitenings[number]
    white = "none"
    if fitted is not None:
        dims = len(fitted.variances)
        white = f"{config.patch_whitening.mode}, {dims} dims from {fitted.pages:,} patches"
    kinds = {column.sift: column for column in columns[1:]}
    return {
        "model": model.name,
        "input_digest": done.input_digest,
        "checkpoint": _checkpoint(done.digests[number], fitted),
        "checkpoint_folder": str(config.checkpoint),
        "which": config.which,
        "descriptor": model.kind,
        "input": model.input,
        "patch_whitening": white,
        "pooling": config.pooling,
        "power": columns[0].power,
        "sift": {kind: column.share for kind, column in kinds.items()},
        "sift_words": {kind: done.digests[column.model] for kind, column in kinds.items()},
        "aggregation": (
            ("" if fitted is None else f"patches whitened ({white}), ")
            + f"{config.pooling}, power {columns[0].power:g}, L2"
            + "".join(f", {c.share:g} of the similarity {k} SIFT's" for k, c in kinds.items())
            + (
                ""
                if len(config.scales) == 1
                else f", side by side at scales {listed(config.scales)}"
            )
        ),
        "scales": list(config.scales),
        "precision": precision.resolve(config).precision,
        "store": config.store.to_dict(),
        "regions": done.regions,
        "regions_config": config.regions.to_dict(),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }


def folders(config: ConfigDict, models: Sequence[Model], workdir: Path) -> list[tuple[int, Path]]:
    """The numbers of the models that have a folder of their own, and these, the main one first."""
    wanted = [(i, model.name) for i, model in enumerate(models) if model.name in config.compare]
    return [(0, workdir), *((i, workdir / name) for i, name in wanted if i)]


def _page_blocks(
    parts: Parts, kept: Sequence[int], scales: int, columns: Sequence[_Column]
) -> Iterator[np.ndarray]:
    """Unit page descriptors, block by block: those of some models at every scale side by side."""
    rows = [page * scales + j for page in kept for j in range(scales)]
    shares = [column.share / scales for column in columns for _ in range(scales)]
    at_a_time = _BLOCK_PAGES * scales
    for blocks in zip(*(parts.blocks(column.model, rows, at_a_time) for column in columns)):
        yield side_by_side(
            [
                l2_normalize(power_norm(block[j::scales], column.power))
                for block, column in zip(blocks, columns, strict=True)
                for j in range(scales)
            ],
            shares,
        )


def _checkpoint(digest: str, fitted: whitening.Whitening | None) -> str:
    """What tells whether embeddings may be compared: the weights, and what whitened the patches."""
    if fitted is None:
        return digest
    return hashlib.sha256(
        digest.encode() + fitted.mean.tobytes() + fitted.components.tobytes()
    ).hexdigest()


def export(config: ConfigDict, where: Sequence[tuple[int, Path]]) -> None:
    """Writes what `config.export_formats` names beside each of some folders."""
    for _, folder in where:
        for name in config.export_formats:
            path = exports.write(load_embeddings(folder), name)
            print(f"written: {path}")


def input_digest(folder: Path) -> str:
    """What the embeddings in a folder were made from; empty where there are none."""
    try:
        return json.loads((folder / "meta.json").read_text()).get("input_digest", "")
    except (OSError, ValueError):
        return ""


def relabel_pages(manifest: Manifest, where: Sequence[tuple[int, Path]]) -> bool:
    """Gives the pages of an embedding that is done the labels of a manifest of the same pages.

    Args:
      where: `folders` of the embedding.

    Returns:
      whether they had others.
    """
    skipped = {page_id for page_id, _ in read_skipped(where[0][1])}
    kept = [page for page in manifest.pages if page.page_id not in skipped]
    changed = []
    for _, folder in where:
        table = load_embeddings(folder).table
        counts = zip(*(table[name].tolist() for name in COUNTS), strict=True)
        pages = [
            page._replace(extra=page.extra | dict(zip(COUNTS, row)))
            for page, row in zip(kept, counts, strict=True)
        ]
        changed.append(relabel(folder, pages, manifest.root))
    return any(changed)


def read_skipped(workdir: Path) -> list[list[str]]:
    """The pages that were skipped in an embedding that is done, and why."""
    with (workdir / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    with replacing(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
