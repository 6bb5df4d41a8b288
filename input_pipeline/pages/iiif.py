"""Reads IIIF Presentation manifests (versions 2 and 3) as lists of pages.

Images are read from disk, or fetched from the servers that the config names (by default only this
machine). Nothing is downloaded from other servers.
"""

import hashlib
import json
import os
import posixpath
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES, atomic_write

COLUMNS = ("canvas", "manifest")
# Largest manifest and image that a server may send, in bytes; longest time in seconds.
_MAX_MANIFEST, _MAX_IMAGE = 64 << 20, 1 << 30
_TIMEOUT = 60


class CanvasPage(NamedTuple):
    """A page of a manifest: image path below the root, label, ids of its canvas and manifest."""

    path: str
    label: str
    canvas: str
    manifest: str


def is_manifest(pages: str) -> bool:
    """Whether `data.pages` names a IIIF manifest: a .json file or a web address."""
    return pages.startswith(("http://", "https://")) or pages.lower().endswith(".json")


def read(
    pages: str, images: str, hosts: Sequence[str], cache: Path
) -> tuple[Path, list[CanvasPage]]:
    """The canvases of a manifest that have an image.

    Args:
      pages: path or address of the manifest.
      images: folder of the images, which are found by the name in their address; empty: the folder
        of the manifest.
      hosts: servers that missing files may be fetched from.
      cache: folder for fetched files.

    Returns:
      the folder that paths are relative to, and the pages in order.

    Raises:
      UserError: the manifest does not exist or is malformed, or an image is neither on disk nor on
        one of these servers.
    """
    if pages.startswith(("http://", "https://")):
        file, root = _fetch(pages, hosts, cache, _MAX_MANIFEST), cache
    else:
        file = Path(pages).expanduser()
        root = file.parent
    content = _json(file, pages)
    name = str(content.get("id") or content.get("@id") or "")
    folder = Path(images).expanduser() if images else root
    canvases = []
    for canvas, label, image in _canvases(content, pages):
        path = _on_disk(image, folder, root) or _fetch(image, hosts, cache, _MAX_IMAGE)
        below = Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
        canvases.append(CanvasPage(below, label, canvas, name))
    if not canvases:
        raise UserError(f"{pages} has no canvas with an image")
    return root, canvases


def _json(file: Path, pages: str) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {pages}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{pages} is not JSON ({error})") from None
    if not isinstance(content, dict) or not ("sequences" in content or "items" in content):
        raise UserError(
            f"{pages} is not a IIIF Presentation manifest: it has neither `items` (version 3) nor "
            "`sequences` (version 2)"
        )
    return content


def _canvases(content: dict, pages: str) -> Iterator[tuple[str, str, str]]:
    """Id, label and image address of each canvas that has an image."""
    try:
        if "sequences" in content:
            for sequence in content["sequences"][:1]:
                for canvas in sequence["canvases"]:
                    for image in canvas.get("images", [])[:1]:
                        resource = image["resource"]
                        resource = resource.get("default", resource)  # of a choice
                        yield canvas["@id"], _text(canvas.get("label")), resource["@id"]
            return
        for canvas in content["items"]:
            for page in canvas.get("items", [])[:1]:
                for annotation in page.get("items", [])[:1]:
                    body = annotation["body"]
                    body = body[0] if isinstance(body, list) else body
                    if body.get("type") == "Choice":
                        body = body["items"][0]
                    yield canvas["id"], _text(canvas.get("label")), body["id"]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{pages}: a canvas does not follow the IIIF format ({error!r})") from None


def _text(label: object) -> str:
    """The first text of a label: a string, or a language map of lists (version 3)."""
    while isinstance(label, dict | list):
        if isinstance(label, dict) and "@value" in label:
            label = label["@value"]
            continue
        values = list(label.values()) if isinstance(label, dict) else label
        label = values[0] if values else ""
    return str(label or "").strip()


def _names(image: str) -> list[str]:
    """Possible file names of an image by its address, the likeliest first.

    For an Image API address (.../IDENTIFIER/full/max/0/default.jpg) the identifier, then for every
    address its last part.
    """
    path = urllib.parse.urlsplit(image).path
    parts = [urllib.parse.unquote(part) for part in path.split("/") if part]
    names = []
    if len(parts) >= 5 and parts[-1].split(".")[0] in ("default", "native", "color", "gray"):
        names.append(parts[-5])
    if parts:
        names.append(parts[-1])
    # An identifier may itself be a path; only its last part names a file.
    return [posixpath.basename(name) for name in names if posixpath.basename(name)]


def _on_disk(image: str, folder: Path, root: Path) -> Path | None:
    parts = urllib.parse.urlsplit(image)
    if parts.scheme in ("", "file"):
        path = Path(urllib.parse.unquote(parts.path))
        path = path if parts.scheme == "file" else root / path
        if path.is_file():
            return path
    for name in _names(image):
        for candidate in (name, *(name + suffix for suffix in IMAGE_SUFFIXES)):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed server must not redirect to a server that is not allowed."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def _fetch(address: str, hosts: Sequence[str], cache: Path, most: int) -> Path:
    """Downloads from an allowed server, unless the file is in the cache."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.hostname not in hosts:
        raise UserError(
            f"{address!r} is not on disk (data.iiif.images names a folder of images), and its "
            f"server is not one of data.iiif.hosts: {', '.join(hosts) or 'none'}"
        )
    suffix = posixpath.splitext(parts.path)[1].lower()
    suffix = suffix if suffix in (*IMAGE_SUFFIXES, ".json") else ""
    path = cache / (hashlib.sha256(address.encode()).hexdigest()[:32] + suffix)
    if path.exists():
        return path
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=_TIMEOUT) as reply, atomic_write(path, "wb") as file:
            size = 0
            while block := reply.read(1 << 20):
                size += len(block)
                if size > most:
                    raise UserError(f"{address!r} sends more than {most >> 20} MiB")
                file.write(block)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"cannot fetch {address!r}: {getattr(error, 'reason', error)}") from None
    return path
