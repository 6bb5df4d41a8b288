"""Writes small TIFF files of kinds that Pillow cannot write: planes, thumbnails, odd tags."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB = 1, 2
_CODES = {2: "B", 3: "H", 4: "I"}


def frame(pixels, tags=None, order="<", planes=False, deflate=False, inner=()):
    """An image of a file: uint8 or uint16 [h, w] or [h, w, c], and tags that replace the usual."""
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    parts = [pixels] if not planes else [pixels[:, :, i] for i in range(samples)]
    parts = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    fields = {
        256: (4, [pixels.shape[1]]),
        257: (4, [pixels.shape[0]]),
        258: (3, [8 * pixels.dtype.itemsize] * samples),
        259: (3, [8 if deflate else 1]),
        262: (3, [RGB if samples >= 3 else GREY]),
        277: (3, [samples]),
        278: (4, [pixels.shape[0]]),
        284: (3, [2 if planes else 1]),
    }
    if samples in (2, 4):
        fields[338] = (3, [2])
    fields |= {tag: (3, list(np.atleast_1d(value))) for tag, value in (tags or {}).items()}
    return fields, [zlib.compress(part) if deflate else part for part in parts], list(inner)


def write(path: Path, *frames, order="<") -> Path:
    """Writes the images one after the other."""
    data = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    link = 4
    for one in frames:
        start, following = _append(data, one, order)
        struct.pack_into(order + "I", data, link, start)
        link = following
    path.write_bytes(data)
    return path


def _append(data, one, order):
    fields, parts, inner = one
    fields = dict(fields)
    if inner:
        fields[330] = (4, [_append(data, child, order)[0] for child in inner])
    places = []
    for part in parts:
        places.append(len(data))
        data += part + bytes(len(part) % 2)
    fields[273], fields[279] = (4, places), (4, [len(part) for part in parts])
    table = b""
    for tag, (kind, values) in sorted(fields.items()):
        raw = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
        if len(raw) > 4:
            place, raw = len(data), raw + bytes(len(raw) % 2)
            data += raw
            raw = struct.pack(order + "I", place)
        table += struct.pack(order + "HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
    start = len(data)
    data += struct.pack(order + "H", len(fields)) + table + bytes(4)
    return start, len(data) - 4
