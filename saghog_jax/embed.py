"""Stage 3: a checkpoint and pages to page descriptors (paper, section 3).

Every process embeds its share of the pages on its own devices and keeps each as it is done; the
main one writes the folders when all are there.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed, precision
from saghog_jax.embedding import folders as embed_folders
from saghog_jax.embedding import journal, patch_whitening
from saghog_jax.embedding.describers import Model, load_models, rule_of
from saghog_jax.embedding.folders import Embedded, listed
from saghog_jax.embedding.journal import PageResult, Parts
from saghog_jax.embedding.pooler import Embedder, Pooling
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints
from saghog_jax.input_pipeline.pages.manifest import Manifest, load_manifest
from saghog_jax.input_pipeline.regions.masks import PageMask, RegionMasks, open_masks
from saghog_jax.input_pipeline.store.build import FINGERPRINTS
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.next_command import next_command
from saghog_jax.retrieval import exports, whitening
from saghog_jax.retrieval.aggregate import GMP_MAX_WIDTH, POOLINGS
from saghog_jax.runs.checkpoint import params_digest, read_config
from saghog_jax.runs.metrics_log import Pace


def run(config: ConfigDict, workdir: Path) -> int:
    """Embeds all pages; returns the number of pages that were skipped.

    What is done is kept page by page in `workdir/parts` until all are there, so that a killed run
    goes on; it belongs to one set of models, pages and settings.

    Raises:
      UserError: a checkpoint, pages or choices that are not there; no page that can be embedded.
    """
    _check(config)
    models = load_models(config)
    _note_other_scale(config)
    manifest = load_manifest(config.data)
    rule = rule_of(config.store, models)
    digests = [params_digest(model.variables) for model in models]
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    views = manifest.at_scales(config.scales)
    input_digest = distributed.main_first(
        lambda: _identity(config, views, rule, models, digests, masks)
    )
    folders = embed_folders.folders(config, models, workdir)
    done = all(embed_folders.input_digest(folder) == input_digest for _, folder in folders)
    distributed.barrier("looked")
    if done:
        skipped = embed_folders.read_skipped(workdir)
        if distributed.is_main():
            new = embed_folders.relabel_pages(manifest, folders)
            embed_folders.export(config, folders)
            said = "; their labels are those given now" if new else ""
            print(f"{workdir} holds these embeddings already{said}")
            print(f"next: {next_command('retrieve', workdir=workdir, embeddings=workdir)}")
        return len(skipped)
    found = distributed.main_first(masks.ensure) if masks else None
    found = [mask for mask in found for _ in config.scales] if found else None
    folder = workdir / "parts"
    if distributed.is_main():
        journal.begin(folder, input_digest)
    kept = folder / patch_whitening.FILE
    whitenings = _whitenings(config, models, digests, views, rule, found, kept)
    pooling = Pooling(config.pooling, config.gmp_lambda, whitenings)
    embedder = Embedder(
        models, pooling, config.local_batch_size, config.pages_per_batch, config.mesh
    )
    names = [model.name for model in models]
    parts = Parts(folder, list(zip(names, embedder.widths)), jax.process_index())
    distributed.barrier("begun")
    there = parts.read()
    distributed.barrier("read")
    if distributed.is_main():
        which = _of_split(config, manifest)
        at = f" at the scales {listed(config.scales)}" if len(config.scales) > 1 else ""
        ready = len(there) // len(config.scales)
        print(
            f"embedding {len(manifest):,} pages{which}{at} with {', '.join(names)}"
            + (f"; {ready:,} are there already" if ready else ""),
            flush=True,
        )
    _embed(config, views, rule, embedder, parts, found, there)
    distributed.barrier("embedded")
    embedded = Embedded(
        config,
        manifest,
        models,
        digests,
        whitenings,
        parts,
        parts.read(),
        input_digest,
        masks.identity if masks else {"backend": "none"},
    )
    skipped = embedded.skipped
    if len(skipped) == len(manifest):
        raise UserError(
            f"none of the {len(manifest)} pages of {config.data.pages!r} could be embedded: "
            f"{manifest.pages[0].page_id}: {skipped[0]}"
        )
    if distributed.is_main():
        embed_folders.write(embedded, workdir)
        shutil.rmtree(folder)
    distributed.barrier("written")
    return len(skipped)


def _note_other_scale(config: ConfigDict) -> None:
    trained = read_config(Path(config.checkpoint)).get("store")
    if trained is not None and trained.scale != config.store.scale and distributed.is_main():
        print(
            f"note: the model was trained on pages resized by {trained.scale:g}, these are resized "
            f"by {config.store.scale:g}; --config.store.scale={trained.scale:g} makes them alike"
        )


def _check(config: ConfigDict) -> None:
    if config.pooling not in POOLINGS:
        raise UserError(f"unknown config.pooling {config.pooling!r}, known: {', '.join(POOLINGS)}")
    if not 0 < config.power <= 1 or config.gmp_lambda <= 0:
        raise UserError(
            f"config.power={config.power} must lie in (0, 1], config.gmp_lambda="
            f"{config.gmp_lambda} be positive"
        )
    unknown = sorted(set(config.export_formats) - set(exports.FORMATS))
    if unknown:
        raise UserError(
            f"unknown config.export_formats {unknown[0]!r}, known: {', '.join(exports.FORMATS)}"
        )
    scales = tuple(config.scales)
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
        raise UserError(f"config.scales={scales}: give different positive factors")
    patch_whitening.check(config)


def _whitenings(
    config: ConfigDict,
    models: Sequence[Model],
    digests: Sequence[str],
    manifest: Manifest,
    rule: Rule,
    masks: Sequence[PageMask] | None,
    kept: Path,
) -> list[whitening.Whitening | None]:
    """The whitening of each model's patch descriptors; what was fitted is kept, to go on with."""
    found: list[whitening.Whitening | None] = [None] * len(models)
    mode = config.patch_whitening.mode
    if mode == "load":
        found = list(patch_whitening.load(Path(config.patch_whitening.file), models, digests))
    elif mode == "fit":

        def fit() -> list[whitening.Whitening]:
            where = [kept] + [kept.parent / model.name / kept.name for model in models[1:]]
            if not all(path.exists() for path in where):
                fitted = patch_whitening.fit(config, models, manifest, rule, masks)
                for path, one, digest in zip(where, fitted, digests, strict=True):
                    whitening.save(one, path, digest)
            return patch_whitening.load(kept, models, digests)

        found = list(distributed.main_first(fit))
    for model, fitted in zip(models, found, strict=True):
        width = model.dim if fitted is None else len(fitted.variances)
        if config.pooling == "gmp" and width > GMP_MAX_WIDTH:
            raise UserError(
                f"config.pooling=gmp pools patch descriptors of width {GMP_MAX_WIDTH} at most; "
                f"those of {model.name} have {width}; --config.patch_whitening.mode=fit "
                "--config.patch_whitening.dim=512 makes fewer of them"
            )
    return found


def _embed(
    config: ConfigDict,
    manifest: Manifest,
    rule: Rule,
    embedder: Embedder,
    parts: Parts,
    masks: Sequence[PageMask] | None,
    there: dict[int, PageResult],
) -> None:
    """Cuts and embeds this process's share of the pages (views), but for those that are there.

    They keep their places in the batches, so that an embedding that was stopped ends in the same
    bits as one that was not.
    """
    share = range(jax.process_index(), len(manifest), jax.process_count())
    todo = [i for i in share if i not in there]
    results: dict[int, PageResult] = {}

    def cuts() -> Iterator[Cut | int]:
        pages = [manifest.pages[i] for i in todo]
        found = None if masks is None else [masks[i] for i in todo]
        stream = stream_cuts(
            manifest.root, pages, rule, config.data.max_pixels, config.store.workers, found, todo
        )
        empty = Cut(*(np.zeros((0, 1), np.uint8),) * 4, None)
        for i in share:
            if i in there:
                yield there[i].patches
                continue
            (cut,) = next(stream)
            unreadable = isinstance(cut, str)
            cut, reason = (empty, cut) if unreadable else (cut, "")
            count, ink = len(cut.patches), int(np.bitwise_count(cut.ink).sum(dtype=np.int64))
            if not count and not reason:
                reason = "no patch passed the rule (a blank page?)"
            results[i] = PageResult(count, ink, reason)
            yield cut

    pace = Pace(len(todo))
    done = patches = 0
    with contextlib.closing(parts):
        for i, descriptors in zip(share, embedder.pages(cuts()), strict=True):
            if i in there:
                continue
            parts.append(i, descriptors, results[i])
            done, patches = done + 1, patches + results[i].patches
            if due := pace.due(done):
                spent, eta = due
                rate = patches / spent
                print(f"{done:,}/{len(todo):,} pages  {rate:,.0f} patches/s  ETA {eta}", flush=True)


def _of_split(config: ConfigDict, manifest: Manifest) -> str:
    """Says that pages of other splits are left out, where the manifest has splits."""
    if not config.data.split or not any(page.split for page in manifest.pages):
        return ""
    return f" of the split {config.data.split!r} (--config.data.split= takes all)"


def _identity(
    config: ConfigDict,
    manifest: Manifest,
    rule: Rule,
    models: Sequence[Model],
    digests: Sequence[str],
    masks: RegionMasks | None,
) -> str:
    """SHA-256 over all that decides the embeddings: contents of pages, rule, masks, models.

    What pages are called does not: labels can be corrected without embedding again.
    """
    contents = fingerprints(
        manifest.root,
        (page.path for page in manifest.pages),
        Path(config.store.root) / FINGERPRINTS,
    )
    decides = {
        "pages": [[p.path, p.box, p.scale, contents[p.path]] for p in manifest.pages],
        "rule": dataclasses.asdict(rule),
        "max_pixels": config.data.max_pixels,
        "models": [[m.name, m.input, d] for m, d in zip(models, digests, strict=True)],
        "precision": precision.resolve(config).precision,
        "power": config.power,
        "sift": config.sift.to_dict(),
        "pooling": [config.pooling, config.gmp_lambda],
        "patch_whitening": _whitening_identity(config),
        **({"regions": [masks.identity, masks.digests]} if masks else {}),
    }
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _whitening_identity(config: ConfigDict) -> list:
    section = config.patch_whitening
    if section.mode == "load":
        # Not where it lies, but what it says.
        path = Path(section.file)
        return ["load", hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""]
    return ["fit", section.dim, section.samples] if section.mode == "fit" else []
