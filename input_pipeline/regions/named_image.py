"""Whether the image that a PAGE or ALTO file names is the page, or another page that is there too.

The names are often out of date: folders were renamed and formats converted. So a file is refused
only if the image that it names exists and is not the page.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES

# Folders above the page in which the named path is looked for.
_LEVELS = 4


def is_named(names: Sequence[str], image: Path) -> bool:
    """Whether one of these names has the file name of the image; suffixes are not compared."""
    return any(_key(_parts(name)[-1:]) == _key([image.name]) for name in names if _parts(name))


def other_image(names: Sequence[str], image: Path, source: Path) -> Path | None:
    """The other image that a file names; None if it names this image, or no file that exists.

    Args:
      names: paths of the image in the file, with `/` or `\\`, or URLs.
      image: path of the page's image.
      source: path of the file.
    """
    paths = [parts for parts in map(_parts, names) if parts]
    for parts in paths:
        # The file name, and the folder if it is given.
        least = min(2, len(parts))
        if _key(parts[-least:]) == _key(image.parts[-least:]):
            return None
    if not image.is_file():
        return None
    for parts in paths:
        for file in _existing(parts, image, source):
            return None if os.path.samefile(file, image) else file
    return None


def _parts(name: str) -> tuple[str, ...]:
    path = urlsplit(name).path if "://" in name else name.replace("\\", "/")
    return tuple(part for part in PurePosixPath(path.strip()).parts if part not in ("/", "."))


def _key(parts: Sequence[str]) -> tuple[str, ...]:
    """Parts of a path to compare: without suffix, in one Unicode form, in small letters."""
    *folders, name = parts
    parts = (*folders, PurePosixPath(name).stem)
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)


def _existing(parts: tuple[str, ...], image: Path, source: Path) -> Iterator[Path]:
    """Images that the path can mean, from its end with most folders to that with fewest."""
    folders = [source.parent, *image.absolute().parents[:_LEVELS]]
    least = min(2, len(parts))
    for first in range(len(parts) - least + 1):
        below = Path(*parts[first:])
        for folder in folders:
            for suffix in (below.suffix, *IMAGE_SUFFIXES):
                file = (folder / below).with_suffix(suffix)
                if file.is_file():
                    yield file
