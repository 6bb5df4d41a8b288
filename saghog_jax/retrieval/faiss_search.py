"""Approximate nearest pages with an index of FAISS, for galleries of millions of pages.

Needs the extra `faiss` (faiss-cpu). Axis letters: q queries, p pages of the gallery, d width, k
results.
"""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, Float32, Int

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.aggregate import l2_normalize

# Rows added to the index at a time: 256 MiB at width 512.
_BLOCK_ROWS = 1 << 17
# FAISS advises 30 to 256 training vectors per list.
_TRAIN_PER_LIST = 64


def search(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "p d"],
    k: int,
    lists: int,
    probes: int,
    index_file: Path,
    input_digest: str,
    own: Int[np.ndarray, " q"],
    query_groups: Int[np.ndarray, " q"] | None = None,
    gallery_groups: Int[np.ndarray, " p"] | None = None,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The approximate k pages of largest cosine similarity.

    Args:
      queries, gallery, k, own, query_groups, gallery_groups: as for `search.search`.
      lists: cells of the inverted file; 0 takes 4 times the square root of p.
      probes: cells searched per query: a larger number is slower and nearer to the exact result.
      index_file: file of the index; it is rebuilt for another input or another number of lists.
      input_digest: digest of the gallery's input.

    Returns:
      rows int64 [q, k'] and similarities float32 [q, k'], best first; -1 and -inf if the searched
      cells contain fewer pages.

    Raises:
      UserError: FAISS is not installed, or lists or probes are not positive.
    """
    faiss = _faiss()
    p = len(gallery)
    lists = lists or max(1, min(int(4 * np.sqrt(p)), p // 39 or 1))
    if not 0 < lists <= p or probes < 1:
        raise UserError(
            f"config.faiss.lists={lists} must lie in 1 to {p} (pages), probes={probes} be positive"
        )
    index = _index(faiss, gallery, lists, index_file, input_digest)
    index.nprobe = min(probes, lists)
    # The query itself and its group are removed from the results: search for more than k.
    spare = 1 + _largest_group(gallery_groups)
    similarity, neighbours = index.search(_unit(queries), min(p, k + spare))
    hidden = (neighbours < 0) | (neighbours == own[:, None])
    if query_groups is not None and gallery_groups is not None:
        same = query_groups[:, None] == gallery_groups[np.maximum(neighbours, 0)]
        hidden |= same & (query_groups >= 0)[:, None]
    k = min(k, p)
    order = np.argsort(hidden, axis=1, kind="stable")[:, :k]
    hidden = np.take_along_axis(hidden, order, 1)
    rows = np.where(hidden, -1, np.take_along_axis(neighbours, order, 1))
    values = np.where(hidden, -np.inf, np.take_along_axis(similarity, order, 1))
    return rows, values.astype(np.float32)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "config.backend=faiss needs FAISS: pip install 'saghog_jax[faiss]' (or config.backend="
            "exact)"
        ) from None
    return faiss


def _largest_group(groups: np.ndarray | None) -> int:
    if groups is None or not (groups >= 0).any():
        return 0
    return int(np.bincount(groups[groups >= 0]).max())


def _unit(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(l2_normalize(np.asarray(x, np.float32)))


def _index(
    faiss: ModuleType, gallery: np.ndarray, lists: int, index_file: Path, input_digest: str
) -> object:
    p, d = gallery.shape
    identity = {"input_digest": input_digest, "rows": p, "dim": d, "lists": lists}
    identity_file = index_file.with_name(index_file.name + ".json")
    if (
        index_file.exists()
        and identity_file.exists()
        and json.loads(identity_file.read_text()) == identity
    ):
        return faiss.read_index(str(index_file))
    quantizer = faiss.IndexFlatIP(d)
    index = faiss.IndexIVFFlat(quantizer, d, lists, faiss.METRIC_INNER_PRODUCT)
    # Spherical k-means: the vectors differ in direction only.
    index.cp.spherical = True
    index.cp.seed = 0
    index.cp.min_points_per_centroid = 1
    sample = np.unique(np.linspace(0, p - 1, min(p, _TRAIN_PER_LIST * lists)).astype(np.int64))
    index.train(_unit(gallery[sample]))
    for start in range(0, p, _BLOCK_ROWS):
        index.add(_unit(gallery[start : start + _BLOCK_ROWS]))
    index_file.parent.mkdir(parents=True, exist_ok=True)
    identity_file.unlink(missing_ok=True)
    faiss.write_index(index, str(index_file))
    with atomic_write(identity_file, "w") as file:
        json.dump(identity, file)
    return index
