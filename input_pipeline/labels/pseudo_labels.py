"""Pseudo labels: the cluster of each patch's SIFT descriptor, or -1 where two clusters compete.

RootSIFT, PCA whitening and mini-batch k-means, fitted on a sample of the store, then assigned to
all of it with a ratio test (CL-S in the paper). The labels lie inside
the store, in labels/DIGEST/{labels.npy, model.npz, labels.json}; with `config.model` such a folder
labels new pages with the same clusters.

Axes: n descriptors, d dimensions after PCA, k clusters.
"""

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.store.reader import Store, read_npy
from saghog_jax.input_pipeline.store.writer import write_file

# Raised whenever the same descriptors and config would give other labels.
VERSION = 1
# Descriptors a k-means step: large enough that 5,000 clusters all see some.
KMEANS_BATCH = 16_384
# Distances held at once while assigning, 64 MB.
CHUNK_DISTANCES = 2**24


class ClusterModel(NamedTuple):
    """What turns descriptors into labels, all float32: mean [128], projection [128, d] (PCA and
    whitening), centres [k, d]."""

    mean: np.ndarray
    projection: np.ndarray
    centres: np.ndarray


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """Hellinger form of SIFT descriptors [n, 128]: L1 norm, square root, L2 norm; float32.

    A descriptor of zeros stays zeros.
    """
    values = descriptors.astype(np.float32)
    roots = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12))
    return roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12)


def fit(descriptors: np.ndarray, num_clusters: int, pca_dim: int, seed: int) -> ClusterModel:
    """Fits whitening and clusters.

    Args:
      descriptors: uint8 [n, 128], raw SIFT; n >= num_clusters, pca_dim.
    """
    # Imported here: only this function needs scikit-learn, which takes a second to import.
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    values = root_sift(descriptors)
    pca = PCA(pca_dim, whiten=True, svd_solver="covariance_eigh").fit(values)
    model = ClusterModel(
        mean=pca.mean_.astype(np.float32),
        projection=(pca.components_.T / np.sqrt(pca.explained_variance_)).astype(np.float32),
        centres=np.empty((0, pca_dim), np.float32),
    )
    kmeans = MiniBatchKMeans(
        num_clusters,
        batch_size=KMEANS_BATCH,
        init_size=3 * num_clusters,
        n_init=1,
        random_state=seed,
    )
    kmeans.fit(_whiten(model, values))
    return model._replace(centres=kmeans.cluster_centers_.astype(np.float32))


def _whiten(model: ClusterModel, values: np.ndarray) -> np.ndarray:
    return ((values - model.mean) @ model.projection).astype(np.float32)


def assign(model: ClusterModel, descriptors: np.ndarray, max_ratio: float) -> np.ndarray:
    """Labels descriptors: the nearest cluster, or -1 where the second is nearly as near.

    Args:
      descriptors: uint8 [n, 128], raw SIFT.
      max_ratio: kept is where distance to the nearest centre <= max_ratio times the distance to
        the second nearest.

    Returns:
      int32 [n].
    """
    labels = [
        nearest(model.centres, _whiten(model, root_sift(part)), max_ratio)
        for part in _chunks(descriptors, len(model.centres))
    ]
    return np.concatenate([np.empty(0, np.int32), *labels])


def _chunks(rows: np.ndarray, k: int) -> list[np.ndarray]:
    step = max(1, CHUNK_DISTANCES // k)
    return [rows[first : first + step] for first in range(0, len(rows), step)]


def nearest(centres: np.ndarray, points: np.ndarray, max_ratio: float) -> np.ndarray:
    """Index of the nearest centre of each point, or -1 by the ratio test; int32 [n].

    Args:
      centres: float32 [k, d]; a single one passes every test.
      points: float32 [n, d].
    """
    # Squared distances but for the points' own norms, which all centres share.
    scores = points @ (-2 * centres.T) + np.square(centres).sum(axis=1)
    rows = np.arange(len(points))
    best = scores.argmin(axis=1)
    first = scores[rows, best]
    scores[rows, best] = np.inf
    second = scores.min(axis=1)
    norms = np.square(points).sum(axis=1)
    # Rounding may leave a point on its centre with a slightly negative distance.
    d1, d2 = (np.sqrt(np.maximum(squares + norms, 0)) for squares in (first, second))
    return np.where(d1 <= max_ratio * d2, best, -1).astype(np.int32)


def ensure_labels(store: Store, config: ConfigDict) -> np.ndarray:
    """Labels of all patches of a store, made and saved inside the store if not there yet.

    Args:
      config: `saghog_jax.configs.common.pseudo_label_config()`.

    Returns:
      int32 [n], cluster or -1.

    Raises:
      UserError: the store keeps no descriptors, or has fewer patches than clusters or dimensions.
    """
    folder = labels_folder(store, config)
    if not (folder / "labels.npy").exists():
        _make(store, config, folder)
    return read_labels(folder, store)


def read_labels(folder: Path, store: Store) -> np.ndarray:
    """Labels that `save_labels` wrote, int32 [n].

    Raises:
      UserError: they are damaged, or not one a patch.
    """
    path = folder / "labels.npy"
    labels = read_npy(path)
    if labels.shape != (len(store),):
        raise UserError(f"{path} holds {labels.shape} labels for {len(store)}; delete {folder}")
    return labels


def labels_folder(store: Store, config: ConfigDict) -> Path:
    """Where the labels of this config lie in a store.

    Raises:
      UserError: `config.model` cannot be read.
    """
    given = config.to_dict()
    if config.model:
        # What is in the file counts, not where it lies; it has its own clusters and dimensions.
        given = {"model": _model_digest(Path(config.model)), "max_ratio": config.max_ratio}
    text = json.dumps([VERSION, given], sort_keys=True)
    return store.path / "labels" / hashlib.sha256(text.encode()).hexdigest()[:12]


def _model_digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / "model.npz").read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"pseudo_labels.model={str(folder)!r} holds no clusters: {error.strerror} "
            f"({folder / 'model.npz'}); name a folder labels/... inside a store"
        ) from None


def load_model(folder: Path) -> ClusterModel:
    """Reads the clusters that were saved beside labels.

    Raises:
      UserError: no readable model there.
    """
    try:
        # Opened here: numpy leaves a file open that turns out to be no archive.
        with (folder / "model.npz").open("rb") as file, np.load(file) as arrays:
            model = ClusterModel(*(arrays[name] for name in ClusterModel._fields))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / 'model.npz'} is no cluster model: {error}") from None
    d = model.projection.shape[-1]
    shapes = [array.shape for array in model]
    if shapes != [(128,), (128, d), (len(model.centres), d)]:
        raise UserError(
            f"{folder / 'model.npz'} is no cluster model: mean, projection and centres have the "
            f"shapes {shapes}, not (128,), (128, d) and (k, d)"
        )
    return model


def _make(store: Store, config: ConfigDict, folder: Path) -> None:
    n = len(store)
    model = load_model(Path(config.model)) if config.model else _fit_sample(store, config)
    labels = np.concatenate(
        [
            assign(model, store.descriptors(part), config.max_ratio)
            for part in _chunks(np.arange(n), len(model.centres))
        ]
    )
    archive = io.BytesIO()
    np.savez(archive, **model._asdict())
    info = {
        "version": VERSION,
        "config": config.to_dict(),
        "scikit-learn": version("scikit-learn"),
        "patches": n,
        "labelled": int((labels >= 0).sum()),
        "clusters_used": len(np.unique(labels[labels >= 0])),
    }
    save_labels(folder, labels, {"model.npz": archive.getvalue()}, info)


def save_labels(
    folder: Path, labels: np.ndarray, files: Mapping[str, bytes], info: Mapping[str, object]
) -> None:
    """Writes a folder of labels, whole or not at all: `files`, labels.npy and labels.json.

    Raises:
      UserError: it cannot be written.
    """
    array = io.BytesIO()
    np.save(array, labels)
    contents = {"labels.npy": array.getvalue(), **files}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents["labels.json"] = (json.dumps({**info, "sha256": sums}, indent=1) + "\n").encode()
    temporary = folder.with_name(f".new-{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        for name, data in contents.items():
            write_file(temporary / name, data)
        os.rename(temporary, folder)
    except OSError as error:
        # Another process may have saved the same labels first.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise UserError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fit_sample(store: Store, config: ConfigDict) -> ClusterModel:
    n, samples = len(store), min(config.fit_samples, len(store))
    for name, limit in (("num_clusters", samples), ("pca_dim", min(128, samples))):
        if not 1 <= config[name] <= limit:
            raise UserError(
                f"pseudo_labels.{name}={config[name]} must lie in [1, {limit}]: {samples:,} of the "
                f"store's {n:,} patches are sampled (fit_samples={config.fit_samples:,})"
            )
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(n, samples, replace=False))
    return fit(store.descriptors(chosen), config.num_clusters, config.pca_dim, config.seed)
