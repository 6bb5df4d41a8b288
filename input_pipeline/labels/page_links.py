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
    most = min(neighbours, p - 2)
    if most < 1:
        return np.arange(p, dtype=np.int32)
    rows, columns = [], []
    step = max(1, _CHUNK_VALUES // p)
    for first in range(0, p, step):
        similarity = vectors[first : first + step] @ vectors.T
        own = np.arange(len(similarity))
        similarity[own, first + own] = -np.inf
        nearest = np.argpartition(-similarity, most, axis=1)[:, : most + 1]
        values = np.take_along_axis(similarity, nearest, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        nearest, values = (np.take_along_axis(a, order, 1) for a in (nearest, values))
        before = np.arange(most) <= (values[:, :-1] - values[:, 1:]).argmax(1)[:, None]
        row, place = np.nonzero(before)
        rows.append(first + row)
        columns.append(nearest[row, place])
    r, c = np.concatenate(rows), np.concatenate(columns)
    is_neighbour = coo_matrix((np.ones(len(r), bool), (r, c)), (p, p)).tocsr()
    links = is_neighbour.multiply(is_neighbour.T)
    return connected_components(links, directed=False)[1].astype(np.int32)


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
