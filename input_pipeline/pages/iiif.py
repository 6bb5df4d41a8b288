"""Reads IIIF Presentation manifests (versions 2 and 3) as lists of pages.

A page is an image that a canvas shows, or the part of an image: regions become boxes, rotations are
applied. Images are read from disk, or fetched from the servers that the config names (by default
only this machine). Nothing is downloaded from other servers.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES, user_path
from saghog_jax.input_pipeline.pages import frames, iiif_canvases
from saghog_jax.input_pipeline.pages.iiif_canvases import Painting
from saghog_jax.input_pipeline.pages.iiif_files import Images, fetch
from saghog_jax.input_pipeline.pages.images import image_size

COLUMNS = ("canvas", "manifest")
PLACE = "place"
# Largest manifest and image that a server may send, in bytes.
_MAX_MANIFEST, _MAX_IMAGE = 64 << 20, 1 << 30
# Canvases left out that are listed on the screen.
_LISTED = 50
# Relative tolerance between the proportions of an image and those that the manifest states.
_SKEW = 0.01

Box = tuple[int, int, int, int]


class CanvasPage(NamedTuple):
    """A page of a manifest.

    path: of the image below the root, with the ending of a turned image (see `frames`).
    box: the part that the canvas shows, None for the whole image.
    label: of the canvas.
    canvas, manifest: their ids.
    place: where on the canvas the page lies, `x,y,w,h`; empty if the manifest does not say.
    partial: whether the page is a part of an image, or a part of what the canvas shows.
    """

    path: str
    box: Box | None
    label: str
    canvas: str
    manifest: str
    place: str
    partial: bool

    @property
    def extra(self) -> dict[str, str]:
        """The further columns of the page."""
        return {"canvas": self.canvas, "manifest": self.manifest, PLACE: self.place}


def is_manifest(pages: str) -> bool:
    """Whether `data.pages` names a IIIF manifest: a .json file or a web address."""
    return pages.startswith(("http://", "https://")) or pages.lower().endswith(".json")


def columns(found: Sequence[CanvasPage]) -> tuple[str, ...]:
    """Names of the further columns; the place only if a page is a part of an image or canvas."""
    several = len({page.canvas for page in found}) < len(found)
    if several or any(page.partial for page in found):
        return (*COLUMNS, PLACE)
    return COLUMNS


def read(
    pages: str, images: str, hosts: Sequence[str], cache: Path
) -> tuple[Path, list[CanvasPage], list[str]]:
    """The images that the canvases of a manifest show.

    Args:
      pages: path or address of the manifest.
      images: folder of the images, which are found by the name in their address; empty: the folder
        of the manifest.
      hosts: servers that missing files may be fetched from.
      cache: folder for fetched files.

    Returns:
      the folder that paths are relative to, the pages in order, and lines that count canvases of
      several images, and count and list what is left out.

    Raises:
      UserError: the manifest does not exist or is malformed, or no canvas has an image that is on
        disk or on one of these servers.
    """
    if pages.startswith(("http://", "https://")):
        file, root = fetch(pages, hosts, cache, _MAX_MANIFEST), cache
    else:
        file = user_path(pages)
        root = file.parent
    content = _json(file, pages)
    name = str(content.get("id") or content.get("@id") or "")
    disk = Images(user_path(images) if images else root, root)
    shown = _paintings(content, pages)
    repeated = _repeated_names(shown, disk)
    found: dict[tuple[str, Box | None], CanvasPage] = {}
    left_out: list[tuple[Painting, str]] = []
    for painting in shown:
        try:
            page = _page(painting, disk, repeated, hosts, cache, root, name)
        except (UserError, PageError) as error:
            left_out.append((painting, str(error)))
            continue
        first = found.setdefault((page.path, page.box), page)
        if first is not page:
            left_out.append((painting, f"shows the same image as {first.label or first.canvas!r}"))
    if not found:
        shown_nothing = all(not painting.address for painting in shown)
        reason = "" if shown_nothing else f" that can be used: {left_out[0][1]}"
        raise UserError(f"{pages} has no canvas with an image{reason}")
    return root, list(found.values()), list(_lines(pages, list(found.values()), left_out))


def _json(file: Path, pages: str) -> dict:
    try:
        content = json.loads(file.read_bytes())  # obeys byte-order marks
    except OSError as error:
        raise UserError(f"cannot read {pages}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{pages} is not JSON ({error})") from None
    if not isinstance(content, dict) or not ("sequences" in content or "items" in content):
        raise UserError(
            f"{pages} is not a IIIF Presentation manifest: it has neither `items` (version 3) nor "
            "`sequences` (version 2)"
        )
    if content.get("type") == "Collection":
        raise UserError(f"{pages} is a IIIF collection; give one of the manifests that it lists")
    return content


def _paintings(content: dict, pages: str) -> list[Painting]:
    try:
        return list(iiif_canvases.paintings(content))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"{pages}: a canvas does not follow the IIIF format ({error!r})") from None


def _repeated_names(shown: Sequence[Painting], disk: Images) -> set[Path]:
    """Files that several images of the manifest have only the bare name in common with."""
    images: dict[Path, set[str]] = defaultdict(set)
    for painting in shown:
        hit = disk.find(painting) if painting.address else None
        if hit is not None and hit[2]:
            images[hit[0]].add(painting.base.partition("://")[2] or painting.base)
    return {path for path, bases in images.items() if len(bases) > 1}


def _page(
    painting: Painting, disk: Images, repeated: set[Path], hosts: Sequence[str], cache: Path,
    root: Path, manifest: str,
) -> CanvasPage:  # fmt: skip
    """The page that a canvas shows.

    Raises:
      UserError: there is no image, or it is neither on disk nor on an allowed server.
      PageError: the image has no such part.
    """
    if not painting.address:
        raise UserError(painting.reason)
    hit = disk.find(painting)
    if hit is not None and hit[0] in repeated:
        raise UserError(
            f"{hit[2]!r} is the name of several images of the manifest; their folders, as in "
            "their addresses, must tell them apart"
        )
    if hit is None:
        path = fetch(_request(painting), hosts, cache, _MAX_IMAGE)
        applied = painting.in_address
    else:
        path, applied, _ = hit
    below = Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
    box = None
    if not applied:
        below, box = _view(below, path, painting)
    partial = box is not None or not painting.whole
    return CanvasPage(
        below, box, painting.label, painting.canvas, manifest, painting.place, partial
    )


def _request(painting: Painting) -> str:
    """The address to fetch: the image's, or of an image service that of its whole image."""
    selected = (painting.region, painting.rotation) != ("full", "0")
    named = painting.address.lower().endswith(IMAGE_SUFFIXES)
    if painting.base == painting.address and selected and not named:
        return f"{painting.address}/full/max/0/default.jpg"
    return painting.address


def _view(below: str, path: Path, painting: Painting) -> tuple[str, Box | None]:
    """The path of the turned image, and the box of the region in it."""
    mirrored = painting.rotation.startswith("!")
    try:
        degrees = float(painting.rotation.lstrip("!"))
    except ValueError:
        raise PageError(f"the rotation {painting.rotation!r} is not a number") from None
    turned = frames.with_rotation(below, mirrored, degrees)
    if painting.region == "full":
        return turned, None
    if degrees % 90:
        raise PageError(f"a region that is turned by {degrees:g} degrees")
    w, h = image_size(path)
    box = _box(painting, w, h)
    if box == (0, 0, w, h):
        return turned, None
    x0, y0, x1, y1 = box
    if mirrored:
        x0, x1 = w - x1, w - x0
    for _ in range(int(degrees // 90) % 4):
        x0, y0, x1, y1, w, h = h - y1, x0, h - y0, x1, h, w
    return turned, (x0, y0, x1, y1)


def _box(painting: Painting, w: int, h: int) -> Box:
    """The region in pixels of an image of w x h pixels that is not turned.

    Raises:
      PageError: the region does not lie in the image, or the image has other proportions than the
        manifest states.
    """
    if painting.region == "square":
        side = min(w, h)
        x, y, wide, high = (w - side) / 2, (h - side) / 2, side, side
        scale = 1.0, 1.0
    elif painting.region.startswith("pct:"):
        x, y, wide, high = map(float, painting.region[4:].split(","))
        scale = w / 100, h / 100
    else:
        x, y, wide, high = map(float, painting.region.split(","))
        stated = painting.size or (w, h)
        scale = w / stated[0], h / stated[1]
        if abs(scale[0] / scale[1] - 1) > _SKEW:
            raise PageError(
                f"the image has {w} x {h} pixels; the manifest states other proportions, "
                f"{stated[0]:g} x {stated[1]:g}"
            )
    x0, x1 = (min(w, round(value * scale[0])) for value in (x, x + wide))
    y0, y1 = (min(h, round(value * scale[1])) for value in (y, y + high))
    if x0 >= x1 or y0 >= y1:
        raise PageError(
            f"the region {painting.region} does not lie in the image of {w} x {h} pixels"
        )
    return x0, y0, x1, y1


def _lines(
    pages: str, found: Sequence[CanvasPage], left_out: Sequence[tuple[Painting, str]]
) -> Iterator[str]:
    several = [count for count in Counter(page.canvas for page in found).values() if count > 1]
    if several:
        yield (
            f"{pages}: {len(several):,} canvases show several images; each of the "
            f"{sum(several):,} images is a page, the column `{PLACE}` says where it lies"
        )
    if left_out:
        yield f"{pages}: {len(left_out):,} images or canvases are left out:"
    for painting, reason in left_out[:_LISTED]:
        yield f"  {' '.join((painting.label or painting.canvas).split())}: {reason}"
    if len(left_out) > _LISTED:
        yield f"  and {len(left_out) - _LISTED:,} more"
