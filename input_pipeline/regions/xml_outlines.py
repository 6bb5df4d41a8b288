"""Outlines of regions and lines in a PAGE or ALTO file.

The outlines of `region` are those of text regions, text blocks and the cells of tables; a table
without cells has its own. The outlines of `line` are those of lines. A region or line without an
outline (such as the dummy block of eScriptorium, which holds the lines of no region) has the
outlines of its parts: of its regions, lines or words.
"""

import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np

from saghog_jax.input_pipeline.errors import PageError

LEVELS = ("region", "line")
WITHOUT_OUTLINE = " without an outline"
_REGIONS = ("TextRegion", "TextBlock", "TableCell")
_TABLE = "TableRegion"
_WANTED = {"region": _REGIONS, "line": ("TextLine",)}
# Parts whose outlines stand for that of the whole.
_PARTS = (*_REGIONS, "TextLine", "Word", "String", "Glyph")
# Elements without any outline are counted down to this part.
_COUNTED = (*_REGIONS, "TextLine")


def find_outlines(
    page: ElementTree.Element, level: str, name: str, left_out: Counter[str]
) -> list[np.ndarray]:
    """The outlines of a page.

    Args:
      page: the element Page.
      level: one of `LEVELS`.
      name: of the file, for errors.
      left_out: regions and lines without any outline are counted here, by kind.

    Returns:
      polygons, float [n, 2] (x, y), in the units of the file.

    Raises:
      PageError: an outline has malformed coordinates.
    """
    found = _below(page, level, name, False, left_out)
    if level == "line":
        for region in page.iter():
            kind = local_name(region)
            if kind in _REGIONS and not any(local_name(e) == "TextLine" for e in region.iter()):
                left_out[f"{kind} without a line"] += 1
    return found


def _below(
    element: ElementTree.Element, level: str, name: str, parts: bool, left_out: Counter[str]
) -> list[np.ndarray]:
    return [polygon for child in element for polygon in _of(child, level, name, parts, left_out)]


def _of(
    element: ElementTree.Element, level: str, name: str, parts: bool, left_out: Counter[str]
) -> list[np.ndarray]:
    """The outlines of an element and of those below it; `parts`: it stands for its whole."""
    kind = local_name(element)
    if kind == _TABLE and level == "region":
        return _of_table(element, level, name, left_out)
    wanted = kind in _WANTED[level] or (parts and kind in _PARTS)
    own = outline(element, name) if wanted else None
    if own is not None:
        return [own, *_below(element, level, name, False, left_out)]
    missing = left_out.total()
    below = _below(element, level, name, parts or wanted, left_out)
    if wanted and not below and missing == left_out.total() and kind in _COUNTED:
        left_out[f"{kind}{WITHOUT_OUTLINE}"] += 1
    return below


def _of_table(
    table: ElementTree.Element, level: str, name: str, left_out: Counter[str]
) -> list[np.ndarray]:
    """The outlines of the cells of a table, else that of the table."""
    missing: Counter[str] = Counter()
    cells = _below(table, level, name, False, missing)
    own = None if cells else outline(table, name)
    if own is not None:
        return [own]
    left_out.update(missing)
    if not cells and not missing:
        left_out[f"{_TABLE}{WITHOUT_OUTLINE}"] += 1
    return cells


def local_name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def outline(element: ElementTree.Element, name: str) -> np.ndarray | None:
    """The outline of an element, float [n, 2] (x, y); None if it has none, or fewer than 3 points.

    Raises:
      PageError: the coordinates are malformed.
    """
    points = None
    for child in element:
        if local_name(child) == "Coords":
            points = child.get("points")
            if points is None:
                corners = [e for e in child if local_name(e) == "Point"]
                points = " ".join(f"{e.get('x')},{e.get('y')}" for e in corners)
        elif local_name(child) == "Shape":
            polygon = next((e for e in child if local_name(e) == "Polygon"), None)
            points = None if polygon is None else polygon.get("POINTS")
    if points and points.strip():
        corners = _numbers(points, name)
        return corners if len(corners) >= 3 else None
    keys = ("HPOS", "VPOS", "WIDTH", "HEIGHT")
    if any(key not in element.attrib for key in keys):
        return None
    sides = [element.attrib[key] for key in keys]
    left, top, width, height = _numbers(" ".join(sides), name).ravel()
    if not (width > 0 and height > 0):
        return None
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
