"""The folders that `embed` writes: page descriptors by each recipe, and the pages they describe."""

import csv
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from saghog_jax.embedding import compact, patch_whitening
from saghog_jax.embedding.compact import Projection
from saghog_jax.embedding.encoder import PageEncoder
from saghog_jax.embedding.journal import PageResult
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.embedding.reuse import Record, write_keys
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.retrieval import exports, whitening
from saghog_jax.retrieval.embeddings import PAGE_DIGEST, check_comparable, load_embeddings
from saghog_jax.retrieval.embeddings_writer import relabel, save_embeddings
from saghog_jax.weights.packed import name_in_the_box

logger = logging.getLogger(__name__)

# Columns that are added to the manifest.
COUNTS = ("patch_count", "ink_pixels")
# Pages whose descriptors are held at a time.
_BLOCK_PAGES = 256


@dataclass(frozen=True)
class Output:
    """An embeddings folder to be written.

    name: of its model in tables.
    recipe: how its page descriptors are made.
    describers: numbers of the encoder's describers, one for each part of the recipe.
    projection: of compact descriptors.
    """

    name: str
    folder: Path
    recipe: PageRecipe
    describers: tuple[int, ...]
    projection: Projection | None

    def join(self, sums: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Page descriptors of pooled patch descriptors; see `compact.join`."""
        return compact.join(self.recipe, self.projection, sums)

    @property
    def dtype(self) -> str:
        """Of the stored descriptors: compact ones lose nothing that matters as float16."""
        return "float32" if self.projection is None else "float16"


@dataclass(frozen=True)
class Embedded:
    """All pages at all scales, embedded.

    encoder: its describers have made the descriptors in `record`.
    digests: SHA-256 of the weights of each describer.
    checkpoint, which: the run folder of the model and its checkpoint.
    results: by view; the scales of a page are next to each other.
    regions: identity of the region masks.
    """

    encoder: PageEncoder
    digests: Sequence[str]
    checkpoint: Path
    which: str
    manifest: Manifest
    record: Record
    results: dict[int, PageResult]
    regions: dict

    @property
    def skipped(self) -> dict[int, str]:
        """Reasons of the skipped pages, by page: those without a patch at any scale."""
        scales, reasons = len(self.encoder.recipe.scales), {}
        for page in range(len(self.manifest)):
            views = [self.results[page * scales + j].reason for j in range(scales)]
            if all(views):
                reasons[page] = views[0]
        return reasons


def outputs_of(encoder: PageEncoder, compare: Sequence[str], workdir: Path) -> list[Output]:
    """The folders of an embedding: that of the encoder's recipe first, then those to compare with.

    Args:
      compare: names of describers that get a folder below `workdir`.
    """
    recipe, names = encoder.recipe, [describer.name for describer in encoder.describers]
    every = tuple(range(len(recipe.parts)))
    outputs = [Output(names[0], workdir, recipe, every, encoder.projection)]
    for number, name in enumerate(names):
        if number and name in compare:
            alone = recipe.alone(encoder.describers[number].descriptor)
            projection = encoder.projection
            if projection is None or alone.parts[0].descriptor not in projection.parts:
                alone, projection = replace(alone, compact=0), None
            outputs.append(Output(name, workdir / name, alone, (number,), projection))
    return outputs


def write(embedded: Embedded, outputs: Sequence[Output], workdir: Path, few_patches: int) -> None:
    """Writes the embeddings folders, the main one last: its meta.json says that all are complete.

    Args:
      few_patches: pages with fewer patches are listed in few_patches.csv.
    """
    pages, scales = embedded.manifest.pages, len(embedded.encoder.recipe.scales)
    skipped = embedded.skipped
    kept = [i for i in range(len(pages)) if i not in skipped]
    counts = {i: embedded.results[i * scales] for i in kept}
    few = [i for i in kept if counts[i].patches < few_patches]
    reasons = [(pages[i].page_id, reason) for i, reason in skipped.items()]
    _write_rows(workdir / "skipped.csv", ("page_id", "reason"), reasons)
    _write_rows(
        workdir / "few_patches.csv",
        ("page_id", *COUNTS),
        [(pages[i].page_id, counts[i].patches, counts[i].ink) for i in few],
    )
    of_pages = embedded.manifest.digests()
    counted = [
        _with_columns(pages[i], (counts[i].patches, counts[i].ink, of_pages[i])) for i in kept
    ]
    by_scale = [[embedded.results[i * scales + j] for j in range(scales)] for i in kept]
    write_keys(workdir, embedded.record.digests, kept, by_scale)
    for number, output in reversed(list(enumerate(outputs))):
        for i, at in enumerate(output.describers):
            fitted = embedded.encoder.whitenings[at]
            if fitted is not None:
                describer = embedded.encoder.describers[at]
                path = patch_whitening.file_of(output.folder, describer, first=not i)
                whitening.save(fitted, path, embedded.digests[at])
        meta = _meta(embedded, output) | {"patches": [counts[i].patches for i in kept]}
        blocks = _page_blocks(embedded.record, kept, output, number)
        save_embeddings(
            output.folder, blocks, counted, embedded.manifest.root, meta, dtype=output.dtype
        )
    patches = sum(result.patches for result in embedded.results.values())
    at = f" at {scales} scales together" if scales > 1 else ""
    logger.info(
        f"{len(kept):,} pages embedded in {workdir}, from {patches:,} patches{at} (cut anew: not "
        "those of pretraining and finetuning)"
    )
    if few:
        logger.warning(
            f"warning: {len(few):,} pages have fewer than {few_patches} patches, too little "
            f"writing to judge; listed in {workdir / 'few_patches.csv'}: {pages[few[0]].page_id}: "
            f"{counts[few[0]].patches}"
        )
    if reasons:
        logger.warning(
            f"{len(reasons):,} pages skipped, listed in {workdir / 'skipped.csv'}: "
            f"{reasons[0][0]}: {reasons[0][1]}"
        )


def _meta(embedded: Embedded, output: Output) -> dict:
    """The content of meta.json of a folder, except its pages (docs/formats.md)."""
    encoder, first = embedded.encoder, output.describers[0]
    fitted = encoder.whitenings[first]
    recipe = output.recipe
    if fitted is not None:
        text = (
            f"{recipe.patch_whitening}, {len(fitted.variances)} dims from {fitted.pages:,} patches"
        )
        recipe = replace(recipe, patch_whitening=text)
    numbers = zip(recipe.parts, output.describers, strict=True)
    return {
        "model": output.name,
        "input_digest": embedded.record.digests.whole,
        "checkpoint": _checkpoint(embedded.digests[first], fitted),
        "checkpoint_folder": name_in_the_box(embedded.checkpoint)
        or _relative(embedded.checkpoint, output.folder),
        "which": embedded.which,
        "digests": {part.descriptor: embedded.digests[number] for part, number in numbers}
        | ({} if output.projection is None else {compact.NAME: output.projection.digest}),
        "recipe": recipe.to_json(),
        "aggregation": recipe.describe(),
        "regions": embedded.regions,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }


def _relative(path: Path, folder: Path) -> str:
    # Relative, so that runs and embeddings may be moved together.
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def _with_columns(page: Page, values: Sequence) -> Page:
    """The page with the columns that are added to the manifest."""
    added = zip((*COUNTS, PAGE_DIGEST), map(str, values), strict=True)
    return page._replace(extra=page.extra | dict(added))


def _page_blocks(
    record: Record, kept: Sequence[int], output: Output, number: int
) -> Iterator[np.ndarray]:
    """Unit page descriptors of the kept pages, block by block, earlier rows as they were."""
    earlier = record.earlier
    rows = record.earlier_descriptors(number) if earlier else np.zeros((0, 0), np.float32)
    new = _joined(record, [page for page in kept if page not in earlier], output)
    for start in range(0, len(kept), _BLOCK_PAGES):
        block = [
            rows[earlier[page]] if page in earlier else next(new)
            for page in kept[start : start + _BLOCK_PAGES]
        ]
        yield np.stack(block)


def _joined(record: Record, pages: Sequence[int], output: Output) -> Iterator[np.ndarray]:
    """The unit page descriptor of each page of the journal."""
    scales = len(output.recipe.scales)
    views = [page * scales + j for page in pages for j in range(scales)]
    columns = (record.blocks(i, views, _BLOCK_PAGES * scales) for i in output.describers)
    for blocks in zip(*columns, strict=True):
        yield from output.join([[block[j::scales] for j in range(scales)] for block in blocks])


def _checkpoint(digest: str, fitted: whitening.Whitening | None) -> str:
    """Identifies the weights, and the whitening of the patches where there is one."""
    if fitted is None:
        return digest
    return hashlib.sha256(
        digest.encode() + fitted.mean.tobytes() + fitted.components.tobytes()
    ).hexdigest()


def export(outputs: Sequence[Output], formats: Sequence[str]) -> None:
    """Writes each folder also in some of `exports.FORMATS`."""
    for output in outputs:
        for name in formats:
            path = exports.write(load_embeddings(output.folder), name)
            logger.info(f"written: {path}")


def gallery_of(workdir: Path, checkpoint: Path) -> Path | None:
    """The embeddings that new pages are compared with: `embed` beside the run folder of the model.

    Args:
      workdir: the folder of the new embeddings.
      checkpoint: the run folder.

    Returns:
      None where there are no such embeddings, where they are not comparable, or where they hold
      one of the pages of `workdir`, which then are not new.
    """
    folder = checkpoint.resolve().parent / "embed"
    if folder == workdir.resolve() or not (folder / "meta.json").is_file():
        return None
    try:
        new, known = load_embeddings(workdir), load_embeddings(folder)
        check_comparable(new, known)
    except UserError:
        return None
    images = {(known.image(row).resolve(), known.box(row)) for row in range(len(known))}
    if any((new.image(row).resolve(), new.box(row)) in images for row in range(len(new))):
        return None
    return folder


def relabel_pages(manifest: Manifest, outputs: Sequence[Output]) -> bool:
    """Gives the pages of a finished embedding the labels of a manifest of the same pages.

    Returns:
      whether the labels have changed.
    """
    skipped = {page_id for page_id, _ in read_skipped(outputs[0].folder)}
    digests = zip(manifest.pages, manifest.digests(), strict=True)
    kept = [(page, digest) for page, digest in digests if page.page_id not in skipped]
    changed = []
    for output in outputs:
        table = load_embeddings(output.folder).table
        counts = zip(*(table[name].tolist() for name in COUNTS), strict=True)
        pages = [
            _with_columns(page, (*row, digest))
            for (page, digest), row in zip(kept, counts, strict=True)
        ]
        changed.append(relabel(output.folder, pages, manifest.root))
    return any(changed)


def read_skipped(workdir: Path) -> list[tuple[str, str]]:
    """The skipped pages of a finished embedding, with the reasons."""
    with (workdir / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return [(page_id, reason) for page_id, reason in list(csv.reader(file))[1:]]


def _write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
