"""Directories of a TIFF: which images a file holds, and each of them as a file of its own.

Tag numbers are those of TIFF 6.0 and of its first supplement; BigTIFF is read too.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

SUFFIXES = (".tif", ".tiff")
REDUCED, PAGE, TRANSPARENCY = 1, 2, 4  # bits of the tag NewSubfileType
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION = 254, 255, 256, 257, 258, 259
PHOTOMETRIC, SAMPLES, MAX_VALUE, PLANES, SUB_DIRECTORIES = 262, 277, 281, 284, 330
ORIENTATION, EXTRA_SAMPLES, SAMPLE_FORMAT, LARGEST_VALUE = 274, 338, 339, 341
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
# struct code of each field type.
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "2I", 6: "b", 7: "s", 8: "h", 9: "i", 10: "2i"}
_TYPES |= {11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAGIC = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True)}
_MAGIC |= {b"MM\0+": (">", True)}
# Directories that are read at most; a file of more is damaged.
_MOST = 10_000
_MOST_TAGS = 4096
# Longer values, in bytes, are no numbers that are needed here, but layers of an editor.
_LONGEST = 16 << 20
# An image without a tag is a reduced copy of another of the same proportions if its sides are at
# most this share of the other's; proportions may differ by the rounding of both sides.
_COPY, _ROUNDING = 0.6, 1.0


@dataclass(frozen=True)
class Directory:
    """One image of a TIFF.

    number: position of its directory in the file, from 1.
    fields: field type and raw bytes of the value of each tag.
    order: byte order, "<" or ">".
    children: directories below this one (tag SubIFDs).
    inner: whether this directory lies below another one.
    """

    number: int
    order: str
    fields: dict[int, tuple[int, bytes]]
    children: tuple["Directory", ...] = field(default=(), repr=False)
    inner: bool = False

    def values(self, tag: int) -> tuple:
        """The numbers of a tag; empty if the tag is missing."""
        kind, raw = self.fields.get(tag, (3, b""))
        code = _TYPES[kind]
        size = struct.calcsize(self.order + code)
        if code == "s":
            return (raw,)
        return struct.unpack(f"{self.order}{len(raw) // size * int(code[:-1] or 1)}{code[-1]}", raw)

    def value(self, tag: int, default: int = 0) -> int:
        """The first number of a tag; `default` if the tag is missing or no whole number."""
        values = self.values(tag)
        return values[0] if values and isinstance(values[0], int) else default

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored."""
        return self.value(WIDTH), self.value(HEIGHT)

    @property
    def is_reduced(self) -> bool:
        """Whether a tag says: a reduced copy, or a transparency mask."""
        kind = self.value(SUBFILE)
        return bool(kind & (REDUCED | TRANSPARENCY)) or self.value(OLD_SUBFILE) == 2


def is_tiff(file: BinaryIO) -> bool:
    """Whether an open file begins as a TIFF does; the position is at its start afterwards."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    return magic in _MAGIC


def directories(file: BinaryIO) -> list[Directory]:
    """The directories of an open TIFF in their order, up to the first damaged one."""
    order, big = _MAGIC[_read(file, 0, 4)]
    found: list[Directory] = []
    seen: set[int] = set()
    try:
        offset = struct.unpack(
            order + ("Q" if big else "I"), _read(file, 8 if big else 4, 8 if big else 4)
        )[0]
        while offset and offset not in seen and len(found) < _MOST:
            seen.add(offset)
            directory, offset = _directory(file, order, big, offset, len(found) + 1)
            if min(directory.size) < 1:
                break
            found.append(directory)
    # Damaged numbers lead to places behind the end of the file, or beyond all files.
    except (EOFError, OSError, OverflowError, ValueError, struct.error):
        pass
    return found


def pages(found: Sequence[Directory]) -> list[Directory]:
    """The images in full resolution: without reduced copies and transparency masks.

    A reduced copy is an image whose tag NewSubfileType (or SubfileType) says so; and, since many
    programs write no such tag, an image that has the proportions of another image of the file and
    at most 60 % of its sides, unless NewSubfileType calls it a page. Where the full image lies
    below a reduced copy (tag SubIFDs), it takes the copy's place. If every image is a reduced copy,
    the largest counts.
    """
    full: list[Directory] = []
    for directory in found:
        if not directory.is_reduced:
            full.append(directory)
        else:
            full += [child for child in directory.children if not child.is_reduced][:1]
    sizes = {one.size for one in full}
    kept = [one for one in full if not any(_is_copy(one, size) for size in sizes)]
    return kept or sorted(found, key=lambda one: -one.size[0] * one.size[1])[:1]


def _is_copy(small: Directory, large: tuple[int, int]) -> bool:
    (w, h), (width, height) = small.size, large
    if w > _COPY * width or h > _COPY * height or small.value(SUBFILE) & PAGE:
        return False
    # Each side was rounded to whole pixels: w = width * f + a, h = height * f + b, |a|, |b| <= 1.
    return abs(w * height - h * width) <= _ROUNDING * (width + height)


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _directory(
    file: BinaryIO, order: str, big: bool, offset: int, number: int, inner: bool = False
) -> tuple[Directory, int]:
    """The directory at an offset, and the offset of the next one."""
    head, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    width = struct.calcsize(order + pointer)
    (count,) = struct.unpack(order + head, _read(file, offset, struct.calcsize(order + head)))
    if count > _MOST_TAGS:
        raise EOFError
    start = offset + struct.calcsize(order + head)
    size = struct.calcsize(order + entry) + width
    table = _read(file, start, count * size + width)
    fields: dict[int, tuple[int, bytes]] = {}
    for at in range(0, count * size, size):
        tag, kind, length = struct.unpack_from(order + entry, table, at)
        if kind not in _TYPES:
            continue
        total = length * struct.calcsize(order + _TYPES[kind])
        raw = table[at + size - width : at + size]
        if total > _LONGEST:
            continue
        if total > width:
            file.seek(struct.unpack(order + pointer, raw)[0])
            raw = file.read(total)
            if len(raw) < total:
                continue
        fields[tag] = (kind, raw[:total])
    directory = Directory(number, order, fields, inner=inner)
    children = ()
    if not inner and directory.is_reduced:
        below = directory.values(SUB_DIRECTORIES)
        children = tuple(_directory(file, order, big, at, number, True)[0] for at in below)
    following = struct.unpack(order + pointer, table[-width:])[0]
    return Directory(number, order, fields, children, inner), following


def extract(
    file: BinaryIO, directory: Directory, plane: int | None = None, black_is_zero: bool = False
) -> io.BytesIO:
    """One image as a TIFF of its own; the coded pixels are copied as they are.

    Args:
      file: the open TIFF.
      directory: of the image.
      plane: only this colour of an image that stores its colours one after the other, as a grey
        image; None: the whole image.
      black_is_zero: the new file says that black is zero, whatever the old one says.

    Raises:
      EOFError, ValueError: the file does not hold the pixels that its directory promises.
    """
    order = directory.order
    length = file.seek(0, io.SEEK_END)
    tiled = _TILES in directory.fields
    places = directory.values(_TILES if tiled else _STRIPS)
    counts = directory.values(_TILE_BYTES if tiled else _STRIP_BYTES)
    if sum(counts) > length or len(places) != len(counts):
        raise ValueError("strips or tiles that the file does not hold")
    fields = {
        tag: entry
        for tag, entry in directory.fields.items()
        if entry[0] < 16 and tag not in (SUB_DIRECTORIES, SUBFILE, OLD_SUBFILE)
    }

    def short(*values: int) -> tuple[int, bytes]:
        return 3, struct.pack(f"{order}{len(values)}H", *values)

    if plane is not None:
        each = len(places) // directory.value(SAMPLES, 1)
        places, counts = (v[plane * each : (plane + 1) * each] for v in (places, counts))
        fields[BITS] = short(directory.values(BITS)[plane])
        fields[SAMPLES] = fields[PLANES] = short(1)
        fields[SAMPLE_FORMAT] = short(directory.value(SAMPLE_FORMAT, 1))
        fields.pop(EXTRA_SAMPLES, None)
    if plane is not None or black_is_zero:
        fields[PHOTOMETRIC] = short(_BLACK_IS_ZERO)
    data = io.BytesIO(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    data.seek(8)
    moved = []
    for place, count in zip(places, counts, strict=True):
        moved.append(data.tell())
        data.write(_read(file, place, count))
    longs = f"{order}{len(moved)}I"
    fields[_TILES if tiled else _STRIPS] = 4, struct.pack(longs, *moved)
    fields[_TILE_BYTES if tiled else _STRIP_BYTES] = 4, struct.pack(longs, *counts)
    _write_directory(data, order, fields)
    data.seek(0)
    return data


def _write_directory(data: io.BytesIO, order: str, fields: dict[int, tuple[int, bytes]]) -> None:
    """Appends the only directory of a file and enters its place in the header."""
    entries = []
    for tag, (kind, raw) in sorted(fields.items()):
        count = len(raw) // struct.calcsize(order + _TYPES[kind])
        if len(raw) > 4:
            data.write(bytes(data.tell() % 2))
            value = struct.pack(order + "I", data.tell())
            data.write(raw)
        else:
            value = raw.ljust(4, b"\0")
        entries.append(struct.pack(order + "HHI", tag, kind, count) + value)
    data.write(bytes(data.tell() % 2))
    start = data.tell()
    data.write(struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4))
    data.seek(4)
    data.write(struct.pack(order + "I", start))
