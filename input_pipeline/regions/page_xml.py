"""Backend for regions that scholars have drawn: the polygons of PAGE and ALTO files.

Supported are PAGE as Transkribus, eScriptorium and OCR-D write it (`Coords points="x,y x,y"`, older
`Point` elements), and ALTO 2 to 4 (`Shape/Polygon`, or the rectangle of HPOS, VPOS, WIDTH, HEIGHT).
Elements are identified by their local names, so all versions of a namespace are read. Coordinates
refer to the page size stated in the file and are scaled to the image. A file with a document type
is refused: document types declare XML entities, and neither format needs them.
"""

import posixpath
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import PageError, check_choice
from saghog_jax.input_pipeline.pages import frames
from saghog_jax.input_pipeline.pages.images import crop
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult
from saghog_jax.input_pipeline.regions.mask_images import (
    FOLDER_RULE,
    check_proportions,
    existing_folder,
    first_file,
    names_below,
)

VERSION = 1
LEVELS = ("region", "line")
_ELEMENTS = {
    ("PcGts", "region"): "TextRegion",
    ("PcGts", "line"): "TextLine",
    ("alto", "region"): "TextBlock",
    ("alto", "line"): "TextLine",
}
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
        del image
        return find_polygons(place, section.level)

    return Backend("xml", VERSION, {"level": section.level}, find, source=source)


def _beside(root: Path, path: str) -> Iterator[Path]:
    parent, name = posixpath.split(path)
    stem = frames.stem(name)
    for below in _BESIDE:
        for file in (f"{stem}.xml", f"{name}.xml"):
            yield root / parent / below / file


def find_polygons(place: Place, level: str) -> RegionResult:
    """The mask of a page from its PAGE or ALTO file; every polygon is one region.

    Raises:
      PageError: the file does not exist, is neither PAGE nor ALTO, or describes an image of other
        proportions.
    """
    if place.source is None:
        raise PageError(
            f"no PAGE or ALTO file has the name of this page (regions.xml.folder); {FOLDER_RULE}"
        )
    name = place.source.name
    root = _parse(place.source)
    kind = _local(root)
    if (kind, level) not in _ELEMENTS:
        raise PageError(f"{name} is neither PAGE nor ALTO; its root element is {kind!r}")
    size = _size(root, name)
    check_proportions(size, place.shape, f"{name}: the element Page")
    scale = place.shape[1] / size[1], place.shape[0] / size[0]
    whole = np.zeros(place.shape, np.uint8)
    drawn = missing = 0
    for element in root.iter():
        if _local(element) != _ELEMENTS[kind, level]:
            continue
        polygon = _polygon(element, name)
        if polygon is None or len(polygon) < 3:
            missing += 1
            continue
        cv2.fillPoly(whole, [np.rint(polygon * scale).astype(np.int32)], 1)
        drawn += 1
    mask = whole if place.box is None else crop(whole, place.box)
    meta = {"format": kind, "polygons": drawn, "without_polygon": missing}
    return RegionResult(mask > 0, (), meta)


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


def _local(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _size(root: ElementTree.Element, name: str) -> tuple[float, float]:
    """Height and width that the coordinates refer to."""
    page = next((e for e in root.iter() if _local(e) == "Page"), None)
    if page is None:
        raise PageError(f"{name} has no element Page")
    keys = ("imageHeight", "imageWidth") if _local(root) == "PcGts" else ("HEIGHT", "WIDTH")
    try:
        height, width = (float(page.attrib[key]) for key in keys)
    except (KeyError, ValueError):
        raise PageError(f"{name}: the element Page has no {keys[0]} and {keys[1]}") from None
    if not (height > 0 and width > 0):
        raise PageError(f"{name}: the element Page has {width:g} x {height:g} pixels")
    return height, width


def _polygon(element: ElementTree.Element, name: str) -> np.ndarray | None:
    """The outline of a region or line, float [n, 2] (x, y); None if the element has no outline."""
    points = None
    for child in element:
        if _local(child) == "Coords":
            points = child.get("points")
            if points is None:
                corners = [e for e in child if _local(e) == "Point"]
                points = " ".join(f"{e.get('x')},{e.get('y')}" for e in corners)
        elif _local(child) == "Shape":
            outline = next((e for e in child if _local(e) == "Polygon"), None)
            points = None if outline is None else outline.get("POINTS")
    if points:
        return _numbers(points, name)
    if "HPOS" not in element.attrib:
        return None
    sides = [element.get(key, "") for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT")]
    left, top, width, height = _numbers(" ".join(sides), name).ravel()
    right, bottom = left + width, top + height
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _numbers(text: str, name: str) -> np.ndarray:
    """Parses pairs of numbers, separated by commas or spaces: `1,2 3,4` or `1 2 3 4`; [n, 2]."""
    try:
        values = [float(word) for word in re.split(r"[\s,]+", text.strip())]
    except ValueError:
        raise PageError(f"{name}: not coordinates: {text[:60]!r}") from None
    if len(values) % 2 or not np.isfinite(values).all():
        raise PageError(f"{name}: not coordinates: {text[:60]!r}")
    return np.array(values).reshape(-1, 2)
