"""Backend for regions that scholars have drawn: the polygons of PAGE and ALTO files.

Supported are PAGE as Transkribus, eScriptorium and OCR-D write it (`Coords points="x,y x,y"`, older
`Point` elements), and ALTO 2 to 4 (`Shape/Polygon`, or the rectangle of HPOS, VPOS, WIDTH, HEIGHT).
Elements are identified by their local names, so all versions of a namespace are read. Coordinates
refer to the page size stated in the file and are scaled to the image. `xml_outlines` says whose
outlines are read, `turned` what happens to images with an EXIF orientation, `named_image` when the
name of the image in the file matters. A file with a document type is refused: document types
declare XML entities, and neither format needs them.
"""

import math
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import PageError, check_choice
from saghog_jax.input_pipeline.pages import frames
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult
from saghog_jax.input_pipeline.regions.mask_images import (
    FOLDER_RULE,
    existing_folder,
    first_file,
    names_below,
)
from saghog_jax.input_pipeline.regions.named_image import is_named, other_image
from saghog_jax.input_pipeline.regions.turned import fits, place_mask, turned_meta
from saghog_jax.input_pipeline.regions.xml_outlines import (
    LEVELS,
    WITHOUT_OUTLINE,
    find_outlines,
    local_name,
    outline,
)

VERSION = 2
# Attributes of the element Page: height and width.
_SIZES = (("imageHeight", "imageWidth"), ("HEIGHT", "WIDTH"))
# Elements whose ends are those of a page without a size.
_SPACES = ("PrintSpace", "TopMargin", "LeftMargin", "RightMargin", "BottomMargin")
_FURTHER = "further Page"
# Folders beside the pages in which export programs put these files.
_BESIDE = ("", "page", "alto")
_MAX_BYTES = 64_000_000


def make(section: ConfigDict) -> Backend:
    """Creates the backend `xml` from the section `config.regions.xml`.

    Raises:
      UserError: the folder does not exist, or the level is unknown.
    """
    check_choice("regions.xml.level", section.level, LEVELS)
    folder = existing_folder(section.folder, "regions.xml.folder") if section.folder else None

    def source(root: Path, path: str, namesakes: Collection[str] = ()) -> Path | None:
        if folder is not None:
            return first_file(names_below(folder, path, (".xml",), namesakes))
        return first_file(_beside(root, path))

    def find(image: np.ndarray, place: Place) -> RegionResult:
        return find_polygons(image, place, section.level)

    return Backend("xml", VERSION, {"level": section.level}, find, source=source)


def _beside(root: Path, path: str) -> Iterator[Path]:
    parent, name = posixpath.split(path)
    stem = frames.stem(name)
    for below in _BESIDE:
        for file in (f"{stem}.xml", f"{name}.xml"):
            yield root / parent / below / file


def find_polygons(image: np.ndarray, place: Place, level: str) -> RegionResult:
    """The mask of a page from its PAGE or ALTO file; every outline is one region.

    Raises:
      PageError: the file does not exist, is neither PAGE nor ALTO, or describes another image.
    """
    if place.source is None:
        raise PageError(
            f"no PAGE or ALTO file has the name of this page (regions.xml.folder); {FOLDER_RULE}"
        )
    name = place.source.name
    root = _parse(place.source)
    kind = local_name(root)
    if kind not in ("PcGts", "alto"):
        raise PageError(f"{name} is neither PAGE nor ALTO; its root element is {kind!r}")
    left_out: Counter[str] = Counter()
    names_another = _check_image(root, place)
    page, size = _choose_page(root, place, name, left_out)
    polygons = find_outlines(page, level, name, left_out)

    def draw(shape: tuple[int, int]) -> np.ndarray:
        whole = np.zeros(shape, np.uint8)
        scale = shape[1] / size[1], shape[0] / size[0]
        for polygon in polygons:
            cv2.fillPoly(whole, [np.rint(polygon * scale).astype(np.int32)], 1)
        return whole

    mask, turned = place_mask(draw, size, image, place, f"{name}: the element Page")
    without = sum(count for what, count in left_out.items() if what.endswith(WITHOUT_OUTLINE))
    meta = {"format": kind, "polygons": len(polygons), "without_polygon": without}
    meta |= turned_meta(turned)
    if left_out:
        meta["left_out"] = dict(left_out)
    if names_another:
        meta["names_image"] = names_another
    return RegionResult(mask, (), meta)


def _check_image(root: ElementTree.Element, place: Place) -> str:
    """The name of an image in the file that is not the page's; empty if it is.

    Raises:
      PageError: another image with this name exists.
    """
    names = [e.get("imageFilename", "") for e in root.iter() if local_name(e) == "Page"]
    names += [e.get("filename", "") for e in root.iter() if local_name(e) == "AlternativeImage"]
    names += [e.text or "" for e in root.iter() if local_name(e) == "fileName"]
    names = [name.strip() for name in names if name.strip()]
    if place.image is None or not names:
        return ""
    image = frames.file_of(place.image)
    other = other_image(names, image, place.source)
    if other is not None:
        raise PageError(
            f"{place.source.name} belongs to another image: it names {names[0]!r}, and {other} is "
            "not this page. Put the file of this page beside it, or correct the name in the file"
        )
    return "" if is_named(names, image) else names[0]


def _choose_page(
    root: ElementTree.Element, place: Place, name: str, left_out: Counter[str]
) -> tuple[ElementTree.Element, tuple[float, float]]:
    """The element Page of this image, and the height and width that its coordinates refer to.

    Of several it is the first with the proportions of the image; the others are counted.
    """
    pages = [element for element in root.iter() if local_name(element) == "Page"]
    if not pages:
        raise PageError(f"{name} has no element Page")
    if len(pages) == 1:
        return pages[0], _size(pages[0], name)
    left_out[_FURTHER] += len(pages) - 1
    sizes = [_stated_size(page, name) for page in pages]
    for shape in (place.shape, place.shape[::-1]):
        for page, size in zip(pages, sizes, strict=True):
            if size is not None and fits(size, shape):
                return page, size
    return pages[0], _size(pages[0], name)


def _parse(path: Path) -> ElementTree.Element:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise PageError(f"{path.name} is larger than {_MAX_BYTES / 1e6:.0f} MB")
        data = path.read_bytes()
        parser = ElementTree.XMLParser(target=_Tree())
        parser.feed(data)
        return parser.close()
    except OSError as error:
        raise PageError(f"{path.name}: cannot read the file: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise PageError(f"{path.name} is not XML: {error}") from None


class _Tree(ElementTree.TreeBuilder):
    """Refuses document types. They precede the first use of an entity."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it has a document type ({name}), which PAGE and ALTO never have")


def _size(page: ElementTree.Element, name: str) -> tuple[float, float]:
    """Height and width that the coordinates refer to.

    Raises:
      PageError: neither the element Page nor its print space has a size.
    """
    size = _stated_size(page, name)
    if size is None:
        keys = (key for pair in _SIZES for key in pair if key in page.attrib)
        given = " ".join(f'{key}="{page.get(key)}"' for key in keys) or "none of them"
        raise PageError(
            f"{name}: the element Page has no imageHeight and imageWidth (PAGE) or HEIGHT and "
            f"WIDTH (ALTO) above 0, but {given}; its PrintSpace has no size either"
        )
    return size


def _stated_size(page: ElementTree.Element, name: str) -> tuple[float, float] | None:
    """Like `_size`; None if there is no size.

    Without a size of the element Page it is where the print space and the margins end.
    """
    for keys in _SIZES:
        with suppress(ValueError):
            height, width = (float(page.get(key, "")) for key in keys)
            if 0 < height < math.inf and 0 < width < math.inf:
                return height, width
    corners = []
    for child in page:
        if local_name(child) in _SPACES:
            # A print space without a place begins in the corner.
            child.attrib.setdefault("HPOS", "0")
            child.attrib.setdefault("VPOS", "0")
            points = outline(child, name)
            corners += [] if points is None else [points.max(axis=0)]
    if not corners:
        return None
    width, height = np.max(corners, axis=0)
    return float(height), float(width)
