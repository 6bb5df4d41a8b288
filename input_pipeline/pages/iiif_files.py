"""Finds the images of a IIIF manifest on disk, or fetches them from allowed servers."""

import hashlib
import os
import posixpath
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES, atomic_write
from saghog_jax.input_pipeline.pages.iiif_canvases import Painting

_TIMEOUT = 60  # seconds


class Images:
    """The image files of a manifest below a folder."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Lists the folder.

        Args:
          folder: of the images, which are found by their names.
          root: folder of the manifest, for relative addresses.
        """
        self._folder, self._root = folder, root
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        self._listed = {_plain(name): name for name in reversed(names)}

    def find(self, painting: Painting) -> tuple[Path, bool, str] | None:
        """The file of an image.

        Returns:
          None if there is none; else the file, whether region and rotation are applied in it, and
          the bare name that it was found by ("" if more than a name points to it).
        """
        parts = urllib.parse.urlsplit(painting.address)
        if parts.scheme in ("", "file"):
            path = Path(urllib.parse.unquote(parts.path))
            path = path if parts.scheme == "file" else self._root / path
            if path.is_file():
                return path, painting.in_address, ""
        if painting.base != painting.address:
            # A server's tree that was copied to the disk.
            for name in _ends(painting.address, 6):
                if (self._folder / name).is_file():
                    return self._folder / name, painting.in_address, ""
        for name in _ends(painting.base, 1):
            for candidate in _candidates(name):
                if "/" in candidate:
                    if (self._folder / candidate).is_file():
                        return self._folder / candidate, False, ""
                elif _plain(candidate) in self._listed:
                    path = self._folder / self._listed[_plain(candidate)]
                    if path.is_file():
                        return path, False, path.name
        return None


def _plain(name: str) -> str:
    """A name in the form by which files are compared: neither case nor Unicode form count."""
    return unicodedata.normalize("NFC", name).lower()


def _ends(address: str, least: int) -> Iterator[str]:
    """The ends of an address as paths, the longest first, with at least so many parts."""
    split = urllib.parse.urlsplit(address)
    text = urllib.parse.unquote(f"{split.netloc}/{split.path}")
    parts = [part for part in text.split("/") if part]
    if ".." in parts or "." in parts:
        parts = parts[-1:]
    for start in range(len(parts) - least + 1):
        name = "/".join(parts[start:])
        if name not in ("..", "."):
            yield name


def _candidates(name: str) -> Iterator[str]:
    """Names of files for a name in an address: with its suffix, with another, with one more."""
    stem, suffix = posixpath.splitext(name)
    if suffix.lower() in IMAGE_SUFFIXES:
        yield name
    for other in IMAGE_SUFFIXES:
        yield name + other
    if suffix.lower() in IMAGE_SUFFIXES:
        for other in IMAGE_SUFFIXES:
            yield stem + other


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed server must not redirect to a server that is not allowed."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def fetch(address: str, hosts: Sequence[str], cache: Path, most: int) -> Path:
    """Downloads from an allowed server, unless the file is in the cache.

    Args:
      most: largest accepted size in bytes.

    Raises:
      UserError: the server is not one of `hosts`, does not answer, or sends too much.
    """
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
