"""What is known of a public collection: where to get it, its layout, its labels, its counts.

A `Collection` is the one place that says it; `layout.read_rows` reads the folders by it, for the
manifest (`catalog`) and for the TFDS builder (`tfds_builder`) alike.
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
    """A file to download; MD5 and size in bytes as published, where known."""

    name: str
    md5: str = ""
    size: int = 0

    def __str__(self) -> str:
        facts = [f"MD5 {self.md5}"] * bool(self.md5) + [f"{self.size:,} bytes"] * bool(self.size)
        return self.name + (f" ({', '.join(facts)})" if facts else "")


@dataclass(frozen=True)
class Table:
    """The CSV that labels the images of a split; images that it does not list are left out.

    names: file names it may have, in the folder of the images or one of the two above.
    file: regular expression of the header of the column with the image's file name.
    columns: for a column of ours the regular expression of its headers there; where several fit,
      their cells are joined by `+`.
    optional: columns of ours that may be missing.
    absent: images that it lists although the archive does not hold them.
    """

    names: tuple[str, ...]
    file: str
    columns: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Part:
    """One split of a collection.

    folders: glob patterns of the folder that holds the images; `.` is the manual folder itself.
    files: regular expression that the whole name of an image fits, in upper or lower case; its
      named groups `writer` and `page` are labels, others are columns. Without a group the page is
      the name without its suffix.
    images, writers, pages: official counts: of images, of different writers (0 where the collection
      names none), and of different values of the column page; None is not checked.
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

    name: as its TFDS builder is named.
    license: what the publishers say; where that is not known here, where to look.
    variants: the splits of each variant, the default one first; "" where there is only one.
    archives: what to download for each variant.
    columns: further columns, in order.
    relabel: from the name of a split and the values of groups and table (with `page`) to the final
      ones, where a regular expression cannot say it; None takes them as they are.
    shared_writers: writers in more than one split; None where that is not known.
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
        """The name with the variant, if it has one."""
        return f"{self.name}/{variant}" if variant else self.name

    def splits(self, variant: str) -> list[str]:
        """Names of the splits, in order."""
        return [part.split for part in self.variants[variant]]

    def instructions(self, variant: str) -> str:
        """How to get the files, in one line."""
        parts = self.variants[variant]
        folders = dict.fromkeys(f"{part.folders[0]}/" for part in parts if part.folders[0] != ".")
        tables = dict.fromkeys(part.table.names[0] for part in parts if part.table)
        return (
            f"download {', '.join(map(str, self.archives[variant]))} from {self.homepage} and "
            f"unpack into the manual folder or its subfolder {self.name}/, which then holds "
            f"{', '.join(folders) or 'the images'}"
            + (f" and, with the images or above them, {', '.join(tables)}" if tables else "")
        )
