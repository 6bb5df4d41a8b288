"""Paths of pages that are one image of a file of several, or an image that is turned.

`volume.tif#frame=2` is the second image of a TIFF. `scan.jpg#rotate=90` is the image turned
clockwise by 90 degrees; with `!` before the number it is mirrored (left to right) first. A path may
have both endings, the frame first. A box refers to the image that results.
"""

import posixpath
import re
from pathlib import Path
from typing import NamedTuple

_ENDING = re.compile(r"(?:#frame=([1-9]\d*))?(?:#rotate=(!?)(\d+(?:\.\d+)?))?\Z")


class View(NamedTuple):
    """What a path names.

    file: path of the image file.
    frame: number of the image in the file, from 1; None: the first in full resolution.
    mirrored: whether the image is mirrored, left to right, before it is turned.
    degrees: clockwise.
    """

    file: str
    frame: int | None
    mirrored: bool
    degrees: float


def parse(path: str) -> View:
    """The file that a page's path names, and which of its images."""
    frame, mirror, degrees = _match(path).groups()
    file = path[: _match(path).start()]
    return View(file, int(frame) if frame else None, bool(mirror), float(degrees or 0))


def _match(path: str) -> re.Match[str]:
    match = _ENDING.search(path)
    assert match is not None  # the expression matches nothing, too
    return match


def file_of(path: Path) -> Path:
    """The image file that a page's path names."""
    return path.with_name(parse(path.name).file)


def ending(path: str) -> str:
    """The ending of a path, such as `#frame=2`; empty for most paths."""
    return path[_match(path).start() :]


def with_frame(path: str, frame: int) -> str:
    """The path of one image of a file of several."""
    return f"{path}#frame={frame}"


def with_rotation(path: str, mirrored: bool, degrees: float) -> str:
    """The path of a turned image; the path itself if nothing is to be turned."""
    degrees %= 360
    if not mirrored and not degrees:
        return path
    return f"{path}#rotate={'!' if mirrored else ''}{degrees:g}"


def stem(path: str) -> str:
    """The path without the suffix of the file: `a/b-frame-2` for `a/b.tif#frame=2`.

    Masks and XML files of such a page are found by this name.
    """
    view = parse(path)
    name = ending(path).replace("!", "mirrored-")
    return posixpath.splitext(view.file)[0] + re.sub("[#=]", "-", name)


def label(path: str) -> str:
    """A short name for people: `b frame 2` for `a/b.tif#frame=2`."""
    view = parse(path)
    name = posixpath.splitext(posixpath.basename(view.file))[0].strip()
    return f"{name} frame {view.frame}" if view.frame else name
