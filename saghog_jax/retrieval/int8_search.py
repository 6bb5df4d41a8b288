"""Search in two passes: 8-bit codes of all pages first, then exact similarities of the best ones.

The codes are a quarter of float32 descriptors, and products of 8-bit integers are fast. A code
rounds each number of `descriptor - centre`, divided by the scale of its row. The centre changes no
order: it lowers all scores of a query by the same number. Axis letters: q queries, p pages of the
gallery, g pages of a block, d width, k results.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int8

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.search import check_sizes, scan

logger = logging.getLogger(__name__)

# The index inside an embeddings folder or a workdir.
FOLDER = "int8_index"
VERSION = 1
# Sums of d products of two codes fit into 32 bits, and the index stays small beside the pages.
_MOST_WIDTH = 4096
# An exact search of fewer pages takes milliseconds.
_FEWEST_PAGES = 5_000
_LARGEST_CODE = 127
_BLOCK_VALUES = 1 << 22
# Rows that identify descriptors, and whose mean is the centre.
_SAMPLE = 1_000
# Pages per query that are compared exactly: this many times k, and so many more.
_CANDIDATES = 2, 40


class Index(NamedTuple):
    """The 8-bit codes of a gallery.

    Attributes:
      codes: a row is about `(unit descriptor - centre) / scale`.
      scales: one per row.
    """

    codes: Int8[np.ndarray, "p d"]
    scales: Float32[np.ndarray, " p"]


def is_useful(pages: int, width: int) -> bool:
    """Whether `embed` writes an index: for at least 5,000 pages of at most 4,096 numbers."""
    return pages >= _FEWEST_PAGES and width <= _MOST_WIDTH


def search(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "p width"],
    index: Index,
    k: int,
    own: Int[np.ndarray, " q"] | None = None,
    query_groups: Int[np.ndarray, " q"] | None = None,
    gallery_groups: Int[np.ndarray, " p"] | None = None,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The k pages of largest cosine similarity among the 2 k + 40 best pages by their codes.

    Args:
      queries, gallery, k, own, query_groups, gallery_groups: as for `search.search`; the codes are
        read in order, and only the candidates of the gallery are read.
      index: of the same gallery.

    Returns:
      as `search.search`; the similarities are exact.

    Raises:
      ValueError: the widths differ, the gallery is empty, or k is below 1.
    """
    check_sizes(queries, gallery, k)
    unit = l2_normalize(np.asarray(queries, np.float32))
    largest = np.maximum(np.abs(unit).max(axis=1, keepdims=True), np.float32(1e-12))
    codes = np.rint(unit * (_LARGEST_CODE / largest)).astype(np.int8)
    times, more = _CANDIDATES
    hidden = own, query_groups, gallery_groups
    candidates, _ = scan(codes, index, _code_products, 1, times * k + more, *hidden)
    k = min(k, len(gallery))
    rows = np.full((len(unit), k), -1)
    values = np.full((len(unit), k), -np.inf, np.float32)
    for i, row in enumerate(candidates):
        # Sorted: the file is read forwards, and pages of equal similarity stay in their order.
        pages = np.sort(row[row >= 0])
        cosines = l2_normalize(np.asarray(gallery[pages], np.float32)) @ unit[i]
        best = np.argsort(-cosines, kind="stable")[:k]
        rows[i, : len(best)], values[i, : len(best)] = pages[best], cosines[best]
    return rows, values


def _code_products(queries: jax.Array, chunk: tuple[jax.Array, ...]) -> jax.Array:
    codes, scales = chunk
    dimensions = (((1,), (1,)), ((), ()))
    products = jax.lax.dot_general(queries, codes, dimensions, preferred_element_type=jnp.int32)
    return products.astype(jnp.float32) * scales


def open_index(
    folder: Path, workdir: Path, descriptors: Float[np.ndarray, "p d"], whitened: bool
) -> Index:
    """The index of an embeddings folder; where it has none for these descriptors, one is written.

    Args:
      folder: the embeddings folder.
      workdir: a new index goes to its folder `int8_index`, where the next search finds it.
      descriptors: of the gallery, as they are compared.
      whitened: whether they differ from those of the folder.

    Raises:
      UserError: the descriptors are wider than 4,096.
    """
    places = [workdir / FOLDER] if whitened else [folder / FOLDER, workdir / FOLDER]
    for place in places:
        index = read(place, descriptors)
        if index is not None:
            return index
    logger.info(f"writing 8-bit codes of {len(descriptors):,} pages: {places[-1]}")
    write(places[-1], descriptors)
    index = read(places[-1], descriptors)
    assert index is not None
    return index


def write(folder: Path, descriptors: Float[np.ndarray, "p d"]) -> None:
    """Writes an index block by block; `index.json` last: without it, there is no index.

    Args:
      folder: created if missing.
      descriptors: float32 or float16, may be memory-mapped.

    Raises:
      UserError: they are wider than 4,096.
    """
    p, d = descriptors.shape
    if d > _MOST_WIDTH:
        raise UserError(
            f"config.backend=int8 is for descriptors of width {_MOST_WIDTH} at most, these have "
            f"{d}: take config.backend=exact"
        )
    remove(folder)
    sample = l2_normalize(np.asarray(descriptors[_sample(p)], np.float32))
    centre = jnp.asarray(sample.mean(axis=0))
    scales = np.empty(p, np.float32)
    step = max(1, _BLOCK_VALUES // d)
    with atomic_write(folder / "codes.npy", "wb") as file:
        header = {"descr": "|i1", "fortran_order": False, "shape": (p, d)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, p, step):
            rows = slice(start, start + step)
            codes, scales[rows] = (np.asarray(x) for x in _encode(descriptors[rows], centre))
            file.write(np.ascontiguousarray(codes).data)
    with atomic_write(folder / "scales.npy", "wb") as file:
        np.save(file, scales, allow_pickle=False)
    with atomic_write(folder / "index.json", "w") as file:
        json.dump({"version": VERSION, "digest": digest_of(descriptors)}, file)


@jax.jit
def _encode(block: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes int8 [g, d] and scales float32 [g] of a block of descriptors."""
    x = l2_normalize(block.astype(jnp.float32)) - centre
    scales = jnp.maximum(jnp.abs(x).max(axis=1), 1e-12) / _LARGEST_CODE
    return jnp.round(x / scales[:, None]).astype(jnp.int8), scales


def read(folder: Path, descriptors: Float[np.ndarray, "p d"]) -> Index | None:
    """The index in a folder, memory-mapped; None where there is none of these descriptors."""
    try:
        content = json.loads((folder / "index.json").read_text())
        if content != {"version": VERSION, "digest": digest_of(descriptors)}:
            return None
        codes = np.load(folder / "codes.npy", mmap_mode="r", allow_pickle=False)
        scales = np.load(folder / "scales.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if codes.shape != descriptors.shape or codes.dtype != np.int8 or len(scales) != len(codes):
        return None
    return Index(codes, scales)


def remove(folder: Path) -> None:
    """Removes the index in a folder, if there is one; `index.json` first."""
    for name in ("index.json", "codes.npy", "scales.npy"):
        (folder / name).unlink(missing_ok=True)


def digest_of(descriptors: Float[np.ndarray, "p d"]) -> str:
    """Identifies descriptors: SHA-256 of shape, dtype and 1,000 evenly spaced rows."""
    digest = hashlib.sha256(f"{descriptors.shape} {descriptors.dtype}".encode())
    digest.update(np.ascontiguousarray(descriptors[_sample(len(descriptors))]).data)
    return digest.hexdigest()


def _sample(pages: int) -> Int[np.ndarray, " _"]:
    return np.unique(np.linspace(0, pages - 1, _SAMPLE).astype(np.int64))
