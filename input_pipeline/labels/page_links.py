"""Classes of similar pages: a guess at the writers of pages without writer labels.

SIFT descriptors alone distinguish the writers of whole pages well. The neighbours of a page are the
pages before the largest drop in similarity. Two pages are linked if each is a neighbour of the
other. The connected components of linked pages are the classes. The labels are saved inside the
store, in links/DIGEST/{labels.npy, pages.csv, labels.json}.

Axes: p pages, n patches, d width of a page's vector.
"""

import csv
import hashlib
import io
import json

import numpy as np
from ml_collections import ConfigDict
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.labels.pseudo_labels import read_labels, save_labels
from saghog_jax.input_pipeline.store.reader import Store

# Increased whenever the same descriptors and config would give other labels.
VERSION = 1
# Similarities in memory at once: 64 MB.
_CHUNK_VALUES = 1 << 24


def link(vectors: np.ndarray, neighbours: int) -> np.ndarray:
    """The class of each page, int32 [p], numbered in the order of the pages.

    Args:
      vectors: float32 [p, d], rows of norm 1.
      neighbours: largest number of neighbours of a page. The drop after the last neighbour needs
        one more page, so at most p - 2 are possible.
    """
    p = len(vectors)
    pairs, _ = mutual_links(*nearest_pages(vectors, neighbours + 1), neighbours)
    links = coo_matrix((np.ones(len(pairs), bool), pairs.T), (p, p))
    return connected_components(links, directed=False)[1].astype(np.int32)


def nearest_pages(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar other pages of each page, or all others, the most similar first.

    Similarities are computed in blocks of rows, so that memory grows with p and not with its
    square.

    Args:
      vectors: float32 [p, d], rows of norm 1.

    Returns:
      rows int64 [p, k] and similarities float32 [p, k].
    """
    p = len(vectors)
    k = min(k, p - 1)
    rows, values = np.zeros((p, k), np.int64), np.zeros((p, k), np.float32)
    if k < 1:
        return rows, values
    step = max(1, _CHUNK_VALUES // p)
    for first in range(0, p, step):
        similarity = vectors[first : first + step] @ vectors.T
        own = np.arange(len(similarity))
        similarity[own, first + own] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(similarity, nearest, 1)
        order = np.argsort(-near, axis=1, kind="stable")
        rows[first : first + step] = np.take_along_axis(nearest, order, 1)
        values[first : first + step] = np.take_along_axis(near, order, 1)
    return rows, values


def mutual_links(
    nearest: np.ndarray, similarity: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of pages that are neighbours of each other before the largest drop in similarity.

    Args:
      nearest, similarity: of `nearest_pages`, [p, k].
      neighbours: largest number of neighbours of a page, below k.

    Returns:
      int64 [m, 2], the smaller row first, and the similarity of each pair.
    """
    p = len(nearest)
    most = min(neighbours, p - 2)
    if most < 1:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    values = similarity[:, : most + 1]
    before = np.arange(most) <= (values[:, :-1] - values[:, 1:]).argmax(1)[:, None]
    row, place = np.nonzero(before)
    other, value = nearest[row, place], values[row, place]
    # A pair that both pages name stands twice in a row once the smaller row is put first.
    pairs = np.sort(np.stack([row, other], 1), axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, value = pairs[order], value[order]
    twice = np.flatnonzero((pairs[1:] == pairs[:-1]).all(1))
    return pairs[twice], value[twice]


def ensure_links(store: Store, config: ConfigDict) -> np.ndarray:
    """The class of each patch of a store; computed and saved inside the store on the first call.

    Args:
      config: `saghog_jax.configs.common.page_links_config()`.

    Returns:
      int32 [n], the class of the patch's page.

    Raises:
      UserError: the store has no SIFT descriptors, or fewer than `words`, or a field is out of
        range.
    """
    for name in ("neighbours", "words"):
        if config[name] < 1:
            raise UserError(f"config.links.{name}={config[name]} must be at least 1")
    text = json.dumps([VERSION, config.to_dict()], sort_keys=True)
    folder = store.path / "links" / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not (folder / "labels.npy").exists():
        vectors = _page_vectors(store, config)
        classes = link(vectors, config.neighbours)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["page_id", "class"])
        ids = (page.page_id for page in store.manifest.pages)
        writer.writerows(zip(ids, classes.tolist(), strict=True))
        info = {
            "version": VERSION,
            "config": config.to_dict(),
            "pages": len(classes),
            "classes": len(np.unique(classes)),
        }
        labels = classes[store.index["page"]]
        files = {"pages.csv": table.getvalue().encode("utf-8", "surrogateescape")}
        save_labels(folder, labels, files, info)
    return read_labels(folder, store)


def _page_vectors(store: Store, config: ConfigDict) -> np.ndarray:
    """SIFT-VLAD of each page's patches, float32 [p, d]; zeros for a page without patches."""
    if len(store) < config.words:
        raise UserError(
            f"config.links.words={config.words} is larger than the number of patches of the store, "
            f"{len(store)}"
        )
    pages = store.rows_of_pages
    words = sift_vlad.fit_words((store.descriptors(rows) for rows in pages), config.words)
    return sift_vlad.page_vectors((store.descriptors(rows) for rows in pages), words)
