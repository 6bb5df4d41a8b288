"""Pseudo labels: the cluster of each patch's SIFT descriptor, or -1 if two clusters compete.

RootSIFT, PCA whitening and mini-batch k-means are fitted on a sample of the store. Then all patches
get labels with a ratio test (CL-S in the paper). The labels are saved inside the store, in
labels/DIGEST/{labels.npy, model.npz, labels.json}. If `config.model` names such a folder, new pages
are labelled with its clusters.

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

# Increased whenever the same descriptors and config would give other labels.
VERSION = 1
# Descriptors per k-means step: enough for 5,000 clusters to get some each.
KMEANS_BATCH = 16_384
# Distances in memory at once while labels are assigned: 64 MB.
CHUNK_DISTANCES = 2**24


class ClusterModel(NamedTuple):
    """Parameters that map descriptors to labels, all float32.

    mean: [128].
    projection: [128, d], PCA and whitening.
    centres: [k, d].
    """

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
    """Labels descriptors: the nearest cluster, or -1 if the second nearest is nearly as close.

    Args:
      descriptors: uint8 [n, 128], raw SIFT.
      max_ratio: a descriptor gets a label if its distance to the nearest centre is at most
        max_ratio times its distance to the second nearest.

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
    """Index of the nearest centre of each point, int32 [n]; -1 if the ratio test fails.

    Args:
      centres: float32 [k, d]; with k = 1 every point passes the test.
      points: float32 [n, d].
    """
    # Squared distances without the points' own norms, which are the same for all centres.
    scores = points @ (-2 * centres.T) + np.square(centres).sum(axis=1)
    rows = np.arange(len(points))
    best = scores.argmin(axis=1)
    first = scores[rows, best]
    scores[rows, best] = np.inf
    second = scores.min(axis=1)
    norms = np.square(points).sum(axis=1)
    # By rounding, the squared distance of a point on its centre may be slightly negative.
    d1, d2 = (np.sqrt(np.maximum(squares + norms, 0)) for squares in (first, second))
    return np.where(d1 <= max_ratio * d2, best, -1).astype(np.int32)


def ensure_labels(store: Store, config: ConfigDict) -> np.ndarray:
    """Labels of all patches of a store; computed and saved inside the store on the first call.

    Args:
      config: `saghog_jax.configs.common.pseudo_label_config()`.

    Returns:
      int32 [n], cluster or -1.

    Raises:
      UserError: the store has no SIFT descriptors, or fewer patches than clusters or dimensions.
    """
    folder = labels_folder(store, config)
    if not (folder / "labels.npy").exists():
        _make(store, config, folder)
    return read_labels(folder, store)


def read_labels(folder: Path, store: Store) -> np.ndarray:
    """Labels that `save_labels` wrote, int32 [n].

    Raises:
      UserError: the file is damaged, or its number of labels is not the number of patches.
    """
    path = folder / "labels.npy"
    labels = read_npy(path)
    if labels.shape != (len(store),):
        raise UserError(
            f"{path} holds labels of shape {labels.shape} for {len(store)} patches; delete {folder}"
        )
    return labels


def labels_folder(store: Store, config: ConfigDict) -> Path:
    """Folder inside a store for the labels of this config.

    Raises:
      UserError: `config.model` cannot be read.
    """
    inputs = config.to_dict()
    if config.model:
        # The digest is over the contents of the model, not its path. The model's own numbers of
        # clusters and dimensions replace those of the config.
        inputs = {"model": _model_digest(Path(config.model)), "max_ratio": config.max_ratio}
    text = json.dumps([VERSION, inputs], sort_keys=True)
    return store.path / "labels" / hashlib.sha256(text.encode()).hexdigest()[:12]


def _model_digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / "model.npz").read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"pseudo_labels.model={str(folder)!r} holds no clusters: {error.strerror} "
            f"({folder / 'model.npz'}); it must be a folder labels/... inside a store"
        ) from None


def load_model(folder: Path) -> ClusterModel:
    """Reads the clusters that were saved with labels.

    Raises:
      UserError: the folder holds no readable model.
    """
    try:
        # Opened here, because numpy does not close a file that is not an archive.
        with (folder / "model.npz").open("rb") as file, np.load(file) as arrays:
            model = ClusterModel(*(arrays[name] for name in ClusterModel._fields))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / 'model.npz'} is not a cluster model: {error}") from None
    d = model.projection.shape[-1]
    shapes = [array.shape for array in model]
    if shapes != [(128,), (128, d), (len(model.centres), d)]:
        raise UserError(
            f"{folder / 'model.npz'} is not a cluster model: mean, projection and centres have the "
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
    """Writes a folder of labels atomically: `files`, labels.npy and labels.json.

    Raises:
      UserError: the folder cannot be written.
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
    sample = np.sort(rng.choice(n, samples, replace=False))
    return fit(store.descriptors(sample), config.num_clusters, config.pca_dim, config.seed)
