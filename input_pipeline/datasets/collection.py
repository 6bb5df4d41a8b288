"""Description of a public collection: download, layout of its folders, labels, official counts.

`layout.read_rows` reads folders according to a `Collection`, for the manifest (`catalog`) and for
the TFDS builder (`tfds_builder`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """A page. path: relative to the manual folder, with forward slashes."""

    path: str
    writer: str
    page: str
    split: str
    extra: dict[str, str]


@dataclass(frozen=True)
class Archive:
    """A file to download; MD5 and size in bytes as published, if known."""

    name: str
    md5: str = ""
    size: int = 0

    def __str__(self) -> str:
        facts = [f"MD5 {self.md5}"] * bool(self.md5) + [f"{self.size:,} bytes"] * bool(self.size)
        return self.name + (f" ({', '.join(facts)})" if facts else "")


@dataclass(frozen=True)
class Table:
    """The CSV that labels the images of a split; images that it does not list are left out.

    names: possible file names, in the folder of the images or one of the two folders above.
    file: regular expression of the header of the column with the image's file name.
    columns: for each column of the manifest the regular expression of the headers in the CSV; if
      several headers match, their cells are joined by `+`.
    optional: columns of the manifest that may be missing in the CSV.
    absent: images that the CSV lists although they are missing in the archive.
    """

    names: tuple[str, ...]
    file: str
    columns: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Part:
    """One split of a collection.

    folders: glob patterns of the folder with the images; `.` is the manual folder itself.
    files: regular expression that matches the whole name of an image, in upper or lower case. The
      named groups `writer` and `page` are labels, other groups are columns. Without a group `page`
      the page is the file name without its suffix.
    images, writers, pages: official counts: of images, of different writers (0 if the collection
      has no writer labels), and of different values of the column page. None is not checked.
    """

    split: str
    folders: tuple[str, ...]
    files: str
    images: int
    writers: int | None = 0
    pages: int | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Collection:
    """A public corpus.

    name: also the name of its TFDS builder.
    license: the publishers' terms; if unknown to us, where to find them.
    variants: the splits of each variant, the default variant first; "" if there is only one.
    archives: files to download for each variant.
    columns: further columns, in order.
    relabel: maps the name of a split and the values of groups and table (including `page`) to the
      final values, for labels that a regular expression cannot express; None keeps the values.
    shared_writers: number of writers in more than one split; None if unknown.
    """

    name: str
    description: str
    homepage: str
    license: str
    citation: str
    variants: Mapping[str, tuple[Part, ...]]
    archives: Mapping[str, tuple[Archive, ...]]
    columns: tuple[str, ...] = ()
    relabel: Callable[[str, dict[str, str]], dict[str, str]] | None = None
    shared_writers: int | None = None

    def full_name(self, variant: str) -> str:
        """The name, with the variant if there are several."""
        return f"{self.name}/{variant}" if variant else self.name

    def splits(self, variant: str) -> list[str]:
        """Names of the splits, in order."""
        return [part.split for part in self.variants[variant]]

    def instructions(self, variant: str) -> str:
        """Download instructions, in one line."""
        parts = self.variants[variant]
        folders = dict.fromkeys(f"{part.folders[0]}/" for part in parts if part.folders[0] != ".")
        tables = dict.fromkeys(part.table.names[0] for part in parts if part.table)
        return (
            f"download {', '.join(map(str, self.archives[variant]))} from {self.homepage} and "
            f"unpack into the manual folder or its subfolder {self.name}/, which then holds "
            f"{', '.join(folders) or 'the images'}"
            + (f" and, with the images or above them, {', '.join(tables)}" if tables else "")
        )
