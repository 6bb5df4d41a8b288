"""The contact sheet of the stage `regions`: pages with their masks of handwriting."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.regions.page_mask import OK, PageMask, one_line
from saghog_jax.input_pipeline.regions.source_notes import left_out
from saghog_jax.reports.thumbnails import data_uri
from saghog_jax.runs.templates import render

_ASSETS = Path(__file__).parent / "assets"
# The colour over areas without handwriting, and its opacity.
_VEIL, _OPACITY = np.array([176, 64, 64], np.float32), 0.65


def write(
    path: Path,
    config: ConfigDict,
    manifest: Manifest,
    masks: Sequence[PageMask],
    infos: Sequence[dict],
) -> None:
    """Writes the contact sheet.

    Args:
      config: of the stage `regions`.
      masks, infos: the mask of each page of the manifest, and `PageMask.info` of it.
    """
    rows = _select(masks, config.sheet_pages)
    page = render(
        "contact_sheet.html",
        _ASSETS,
        title="Regions",
        summary=_summary(config, manifest, masks, infos, len(rows)),
        figures=list(_figures(config, manifest, masks, infos, rows)),
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def _select(masks: Sequence[PageMask], limit: int) -> list[int]:
    """Rows of the pages to show: failed ones first, then others, evenly spread."""
    failed = [row for row, mask in enumerate(masks) if mask.status != OK][:limit]
    good = [row for row, mask in enumerate(masks) if mask.status == OK]
    count = min(len(good), limit - len(failed))
    return failed + [good[i] for i in np.linspace(0, len(good) - 1, count).astype(int)]


def _summary(
    config: ConfigDict,
    manifest: Manifest,
    masks: Sequence[PageMask],
    infos: Sequence[dict],
    shown: int,
) -> str:
    counts = Counter(mask.status for mask in masks)
    text = f"{len(manifest)} pages of {config.data.pages}, masks by {config.regions.backend}: "
    text += ", ".join(f"{n} {status}" for status, n in counts.most_common())
    shares = [i["share"] for m, i in zip(masks, infos, strict=True) if m.status == OK]
    if shares:
        text += f"; handwriting on {np.median(shares):.0%} of the median page"
    return text + f". {shown} of them are shown."


def _figures(
    config: ConfigDict,
    manifest: Manifest,
    masks: Sequence[PageMask],
    infos: Sequence[dict],
    rows: Sequence[int],
) -> Iterator[dict]:
    for row in rows:
        page, mask = manifest.pages[row], masks[row]
        note = ""
        if mask.status != OK:
            note = f"{mask.status}: {mask.reason}"
        elif infos[row]:
            note = f"handwriting on {infos[row]['share']:.0%}"
            if missing := left_out(infos[row]):
                note += f"; left out: {missing}"
        failed = mask.status != OK
        try:
            image = data_uri(_veiled(config, manifest.root, page, mask), config.sheet_side)
        except PageError as error:
            # A page that is not `ok` has its reason already.
            image, note, failed = "", note if failed else one_line(error), True
        yield {"failed": failed, "image": image, "page": page.page_id, "note": note}


def _veiled(config: ConfigDict, root: Path, page: Page, mask: PageMask) -> np.ndarray:
    """The page, coloured where its mask has no handwriting: uint8 [h, w, 3].

    Raises:
      PageError: the page or its mask cannot be read, or the mask is that of another page.
    """
    image = load_page(root / page.path, page.box, config.data.max_pixels).copy()
    if mask.file is None:
        return image
    outside = ~mask.read(image.shape[:2])
    image[outside] = ((1 - _OPACITY) * image[outside] + _OPACITY * _VEIL).astype(np.uint8)
    return image
