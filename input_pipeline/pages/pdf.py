"""Pages of PDF files: each is drawn once, at a stated resolution, into the cache as a PNG.

CACHE/pdf/NAME-DIGEST-300dpi/    DIGEST is over the content of the PDF
  NAME_p0001.png                 one image a page, as a viewer shows the page
  pages.json                     written last: number of pages, pages left out and why
"""

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.file_kinds import PDF_REMEDY
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints
from saghog_jax.input_pipeline.progress import ProgressTimer

logger = logging.getLogger(__name__)

# Increased whenever the same page is drawn differently.
_VERSION = 1
# Points an inch, the unit of PDF.
_POINTS = 72
# Resolutions that serve handwriting; fewer dots lose the strokes.
_LOWEST, _HIGHEST = 50, 1200


class PdfPage(NamedTuple):
    """A page of a PDF.

    path: of its image, below the folder of `draw`.
    name: as if the image lay beside the PDF: `sub/letters_p0001.png` for `sub/letters.pdf`.
    """

    path: str
    name: str


def can_draw() -> bool:
    """Whether the optional part that draws PDF pages is installed."""
    return importlib.util.find_spec("pypdfium2") is not None


def draw(
    folder: Path,
    names: Sequence[str],
    dpi: int,
    max_pixels: int,
    cache: Path,
    contents_cache: Path | None = None,
) -> tuple[Path, list[PdfPage], list[str]]:
    """Draws the pages of PDF files that were not drawn before.

    Args:
      folder: of the PDFs.
      names: paths of the PDFs below it.
      dpi: pixels an inch.
      max_pixels: a page of more pixels is left out.
      cache: see above.
      contents_cache: see `fingerprints`.

    Returns:
      the folder of the images, their pages in order, and a line for each file or page left out.

    Raises:
      UserError: the resolution is out of its range, the optional part is missing, or the cache
        cannot be written.
    """
    if not _LOWEST <= dpi <= _HIGHEST:
        raise UserError(
            f"data.pdf_dpi={dpi} must be between {_LOWEST} and {_HIGHEST} pixels an inch"
        )
    root = cache / "pdf"
    digests = fingerprints(folder, names, contents_cache)
    pages: list[PdfPage] = []
    left_out: list[str] = []
    for name in names:
        if not digests[name]:
            left_out.append(f"{name}: the file cannot be read")
            continue
        stem = name[: -len(".pdf")]
        short = Path(stem).name
        below = f"{short[:40]}-{digests[name][:12]}-{dpi}dpi"
        try:
            info = _drawn(folder / name, root / below, short, dpi, max_pixels)
        except PdfError as error:
            left_out.append(f"{name}: {error}")
            continue
        except OSError as error:
            raise UserError(f"cannot write in {root / below}: {error.strerror}") from None
        left_out += [f"{name} page {page}: {reason}" for page, reason in info["left_out"].items()]
        for number in range(1, info["pages"] + 1):
            if str(number) not in info["left_out"]:
                ending = _ending(number)
                pages.append(PdfPage(f"{below}/{short}{ending}", f"{stem}{ending}"))
    return root, pages, left_out


class PdfError(ValueError):
    """A PDF cannot be read; the message is the reason."""


def _ending(number: int) -> str:
    return f"_p{number:04d}.png"


def _drawn(file: Path, out: Path, short: str, dpi: int, max_pixels: int) -> dict:
    """Draws a PDF into a folder, unless it is complete, and returns the content of pages.json."""
    identity = {"version": _VERSION, "dpi": dpi, "max_pixels": max_pixels}
    try:
        info = json.loads((out / "pages.json").read_text(encoding="utf-8"))
        if all(info[key] == value for key, value in identity.items()):
            return info
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not can_draw():
        raise UserError(f"{file} is a PDF; {PDF_REMEDY}")
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        raise PdfError(_reason(error)) from None
    with document:
        logger.info(f"{file}: drawing {len(document):,} pages at {dpi} dpi into {out}")
        timer = ProgressTimer(len(document))
        left_out = {}
        for number in range(1, len(document) + 1):
            try:
                _draw_page(document, number, out / f"{short}{_ending(number)}", dpi, max_pixels)
            except (pypdfium2.PdfiumError, PdfError) as error:
                left_out[str(number)] = _reason(error)
            if progress := timer.due(number):
                logger.info(
                    f"{file}: {number:,} of {len(document):,} pages, "
                    f"{progress.remaining:,.0f} s left"
                )
        info = identity | {"pages": len(document), "left_out": left_out}
    with atomic_write(out / "pages.json", "w") as opened:
        json.dump(info, opened, indent=1)
    return info


def _draw_page(document: object, number: int, out: Path, dpi: int, max_pixels: int) -> None:
    page = document[number - 1]
    width, height = (round(side * dpi / _POINTS) for side in page.get_size())
    if not 0 < width * height <= max_pixels:
        raise PdfError(
            f"{width} x {height} pixels at data.pdf_dpi={dpi} are more than "
            f"data.max_pixels={max_pixels} allows"
        )
    image = page.render(scale=dpi / _POINTS).to_pil().convert("RGB")
    with atomic_write(out, "wb") as file:
        # Little compression: writing is otherwise slower than drawing.
        image.save(file, "PNG", compress_level=1, dpi=(dpi, dpi))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
