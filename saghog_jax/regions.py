"""Stage regions: masks of the handwriting of all pages, a table of them, and a contact sheet."""

import csv
import html
import json
import logging
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page, load_manifest
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.regions.page_mask import OK, PageMask, read_mask
from saghog_jax.reports.thumbnails import data_uri
from saghog_jax.runs.stage_result import NextStage, StageResult

logger = logging.getLogger(__name__)

# Where no handwriting is, a page is shown faded in this colour.
_VEIL = np.array([176, 64, 64], np.float32)
# Collections of fewer pages are for the recipe `small`.
_SMALL = 1000
_HTML = string.Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Regions</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(14em, 1fr)); gap: 1em }
figure { margin: 0; padding: .5em; border: 1px solid #ccc; border-radius: 4px }
figure.failed { border-color: #b33; background: #fff4f2 }
img { max-width: 100%; max-height: 20em; display: block; margin: auto }
figcaption { overflow-wrap: anywhere; font-size: 13px; margin-top: .5em }
</style>
<h1>Regions</h1><p>$head</p><p>Handwriting is shown as it is, what is left out in red.</p>
<main>
$figures
</main></html>
""")


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Makes the masks that are missing, writes `pages.csv` and `report.html` into `workdir`.

    Raises:
      UserError: the backend is `none`, or see `RegionMasks.ensure`.
    """
    manifest = load_manifest(config.data)
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    if masks is None:
        raise UserError("regions.backend is 'none', so there is nothing to find; choose another")
    found = masks.ensure()
    infos = [mask.info() for mask in found]
    _write_table(workdir / "pages.csv", manifest, found, infos)
    chosen = _chosen(found, config.sheet_pages)
    figures = "\n".join(_figures(config, manifest, found, infos, chosen))
    head = html.escape(_head(config, manifest, found, infos, len(chosen)))
    with atomic_write(workdir / "report.html", "w") as file:
        file.write(_HTML.substitute(head=head, figures=figures))
    logger.info(f"masks: {masks.folder}")
    logger.info(f"table: {workdir / 'pages.csv'}")
    logger.info(f"contact sheet: {workdir / 'report.html'}")
    # The recipe for collections of this size (docs/quality.md).
    small = config.data.pages != "synthetic" and len(manifest) < _SMALL
    following = NextStage(
        "pretrain",
        sections={"data": config.data, "regions": config.regions},
        split="",
        variant="small" if small else "",
    )
    return StageResult(
        workdir,
        paths={"masks": masks.folder, "report": workdir / "report.html"},
        counts={"pages": len(manifest)},
        skipped=tuple(
            (page.page_id, f"{mask.status}: {mask.reason}")
            for page, mask in zip(manifest.pages, found, strict=True)
            if mask.status != OK
        ),
        following=(following,),
    )


def _write_table(
    path: Path, manifest: Manifest, found: Sequence[PageMask], infos: Sequence[dict]
) -> None:
    with atomic_write(path, "w") as file:
        table = csv.writer(file)
        table.writerow(("page_id", "status", "reason", "share", "keypoints", "mask"))
        for page, mask, info in zip(manifest.pages, found, infos, strict=True):
            counted = json.dumps(info["keypoints"]) if info.get("keypoints") else ""
            name = mask.file.name if mask.file else ""
            share = info.get("share", "")
            table.writerow((page.page_id, mask.status, mask.reason, share, counted, name))


def _chosen(found: Sequence[PageMask], most: int) -> list[int]:
    """Rows on the contact sheet: what failed, then others, evenly picked."""
    failed = [row for row, mask in enumerate(found) if mask.status != OK][:most]
    good = [row for row, mask in enumerate(found) if mask.status == OK]
    count = min(len(good), most - len(failed))
    return failed + [good[i] for i in np.linspace(0, len(good) - 1, count).astype(int)]


def _head(
    config: ConfigDict,
    manifest: Manifest,
    found: Sequence[PageMask],
    infos: Sequence[dict],
    shown: int,
) -> str:
    counts = Counter(mask.status for mask in found)
    text = f"{len(manifest)} pages of {config.data.pages}, looked at by {config.regions.backend}: "
    text += ", ".join(f"{n} {status}" for status, n in counts.most_common())
    shares = [i["share"] for m, i in zip(found, infos, strict=True) if m.status == OK]
    if shares:
        text += f"; handwriting on {np.median(shares):.0%} of the median page"
    return text + f". {shown} of them are shown."


def _figures(
    config: ConfigDict,
    manifest: Manifest,
    found: Sequence[PageMask],
    infos: Sequence[dict],
    chosen: Sequence[int],
) -> Iterator[str]:
    for row in chosen:
        page, mask = manifest.pages[row], found[row]
        words = [f"<b>{html.escape(page.page_id)}</b>"]
        if mask.status != OK:
            words.append(html.escape(f"{mask.status}: {mask.reason}"))
        elif infos[row]:
            words.append(f"handwriting on {infos[row]['share']:.0%}")
        try:
            image = _veiled(config, manifest.root, page, mask)
            picture = f'<img alt="" src="{data_uri(image, config.sheet_side)}">'
        except PageError:
            picture = ""
        failed = "" if mask.status == OK else ' class="failed"'
        yield f"<figure{failed}>{picture}<figcaption>{'<br>'.join(words)}</figcaption></figure>"


def _veiled(config: ConfigDict, root: Path, page: Page, mask: PageMask) -> np.ndarray:
    """The page with a veil over all that is not in its mask."""
    image = load_page(root / page.path, page.box, config.data.max_pixels).copy()
    if mask.file is None:
        return image
    outside = ~read_mask(mask.file)
    image[outside] = (0.35 * image[outside] + 0.65 * _VEIL).astype(np.uint8)
    return image
