"""What is left out of the files that masks were read from, in one line for all pages of a kind."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.regions.page_mask import PageMask, one_line


def left_out(info: Mapping[str, Any]) -> str:
    """What the mask of a page leaves out, from `PageMask.info`; empty if nothing is left out."""
    return _counts(info.get("meta", {}).get("left_out", {}))


def summarise(masks: Sequence[PageMask], manifest: Manifest, log: Callable[[str], None]) -> None:
    """Logs what was left out, which files name other images, and which masks were turned."""
    metas: list[tuple[str, dict[str, Any]]] = [
        (one_line(page.page_id), mask.info().get("meta", {}))
        for page, mask in zip(manifest.pages, masks, strict=True)
    ]
    missing = [(page, meta) for page, meta in metas if meta.get("left_out")]
    total: Counter[str] = Counter()
    for _, meta in missing:
        total.update(meta["left_out"])
    if missing:
        log(f"regions: left out: {_counts(total)}; {_pages(missing)}")
    named = [(page, meta) for page, meta in metas if meta.get("names_image")]
    if named:
        log(
            f"regions: files that name another image, such as {named[0][1]['names_image']!r}, "
            f"which is not there: {_pages(named)}"
        )
    turned = [(page, meta) for page, meta in metas if meta.get("turned_by_orientation")]
    if turned:
        log(
            "regions: masks drawn on the image as stored, turned by its EXIF orientation: "
            f"{_pages(turned)}"
        )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} x {what}" for what, count in counts.items())


def _pages(pages: Sequence[tuple[str, Any]]) -> str:
    return f"{len(pages):,} {'page' if len(pages) == 1 else 'pages'}, such as {pages[0][0]}"
