import numpy as np
import pytest
from places import TESTS
from store_helpers import make_store

from saghog_jax.configs import common
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels import pseudo_labels
from saghog_jax.input_pipeline.labels.pseudo_labels import (
    ClusterModel,
    assign,
    ensure_labels,
    labels_folder,
    load_model,
    nearest,
    root_sift,
)

GOLDEN = np.load(TESTS / "golden" / "patches_offline.npz")


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "store", [120, 0, 200, 130])[0]


def config(**changes):
    labels = common.pseudo_label_config()
    labels.update({"num_clusters": 8, "pca_dim": 6, "fit_samples": 300, **changes})
    return labels


def golden_model():
    projection = GOLDEN["pca_components"].T / np.sqrt(GOLDEN["pca_var"])
    return ClusterModel(GOLDEN["pca_mean"], projection, GOLDEN["centers"])


def test_root_sift_against_loops():
    rng = np.random.default_rng(0)
    descriptors = rng.integers(0, 256, (5, 128), np.uint8)
    descriptors[2] = 0
    for row, result in zip(descriptors.tolist(), root_sift(descriptors), strict=True):
        total = sum(row) or 1
        # float32 sums of 128 terms.
        np.testing.assert_allclose(result, [(v / total) ** 0.5 for v in row], atol=1e-6)


def test_the_published_labels():
    # The first 64 descriptors; none is so near a limit that rounding could change its label.
    points, ratios, nearest_centre = (GOLDEN[k][:64] for k in ("pca_desc", "ratio", "pred"))
    for ratio in (0.9, 0.7):
        expected = np.where(ratios <= ratio, nearest_centre, -1)
        np.testing.assert_array_equal(nearest(GOLDEN["centers"], points, ratio), expected)
        assert 0 < (expected >= 0).sum() < 64
    kept = nearest(GOLDEN["centers"], points, 0.9) >= 0
    np.testing.assert_array_equal(kept, GOLDEN["kept"][:64])


def test_the_published_whitening():
    # Whitening divides float32 values of size .1 by standard deviations of .02 to .2.
    whitened = pseudo_labels._whiten(golden_model(), GOLDEN["desc_first"])
    np.testing.assert_allclose(whitened, GOLDEN["pca_desc"], atol=2e-5)


def test_assignment_against_loops():
    rng = np.random.default_rng(1)
    centres, points = rng.normal(size=(9, 4)), rng.normal(size=(50, 4))
    labels_of_points = nearest(centres.astype(np.float32), points.astype(np.float32), 0.8)
    for point, label in zip(points, labels_of_points, strict=True):
        distances = sorted((float(np.linalg.norm(point - c)), i) for i, c in enumerate(centres))
        expected = distances[0][1] if distances[0][0] <= 0.8 * distances[1][0] else -1
        assert label == expected
    assert -1 in labels_of_points
    assert len(set(labels_of_points)) > 3


def test_a_point_on_its_centre_and_a_single_centre():
    centres = np.float32([[3, 4], [30, 40]])
    np.testing.assert_array_equal(nearest(centres, centres, 0.9), [0, 1])
    np.testing.assert_array_equal(nearest(centres[:1], centres, 0.9), [0, 0])


def test_chunks_do_not_change_labels(store, monkeypatch):
    whole = ensure_labels(store, config())
    model = load_model(labels_folder(store, config()))
    # 7 rows a chunk instead of one chunk.
    monkeypatch.setattr(pseudo_labels, "CHUNK_DISTANCES", 56)
    descriptors = store.descriptors(np.arange(len(store)))
    np.testing.assert_array_equal(assign(model, descriptors, 0.9), whole)
    assert assign(model, descriptors[:0], 0.9).shape == (0,)


def test_labels_are_saved_and_deterministic(store, tmp_path, monkeypatch):
    labels = ensure_labels(store, config())
    assert labels.shape == (len(store),)
    assert labels.dtype == np.int32
    assert set(labels) <= set(range(-1, 8))
    assert len(set(labels)) > 4
    again, _ = make_store(tmp_path / "again", [120, 0, 200, 130])
    ensure_labels(again, config())
    for name in ("labels.npy", "model.npz", "labels.json"):
        first, second = (labels_folder(s, config()) / name for s in (store, again))
        assert first.read_bytes() == second.read_bytes()
    monkeypatch.setattr(pseudo_labels, "fit", lambda *_: pytest.fail("fitted again"))
    np.testing.assert_array_equal(ensure_labels(store, config()), labels)


@pytest.mark.parametrize(
    "change",
    [{"num_clusters": 5}, {"pca_dim": 5}, {"fit_samples": 200}, {"max_ratio": 0.8}, {"seed": 1}],
)
def test_every_field_counts(store, change):
    assert (ensure_labels(store, config()) != ensure_labels(store, config(**change))).any()


def test_clusters_of_one_store_label_another(store, tmp_path, monkeypatch):
    ensure_labels(store, config())
    saved = labels_folder(store, config())
    new, _ = make_store(tmp_path / "new", [90, 60], seed=1)
    own = ensure_labels(new, config())
    monkeypatch.setattr(pseudo_labels, "fit", lambda *_: pytest.fail("fitted again"))
    labels = ensure_labels(new, config(model=str(saved)))
    expected = assign(load_model(saved), new.descriptors(np.arange(len(new))), 0.9)
    np.testing.assert_array_equal(labels, expected)
    assert (labels != own).any()
    assert (ensure_labels(new, config(model=str(saved), max_ratio=0.7)) != labels).any()
    # The folder depends on the clusters, but not on the path of the model.
    moved = saved.rename(tmp_path / "elsewhere")
    assert labels_folder(new, config(model=str(moved))).is_dir()
    model = load_model(moved)
    with (moved / "model.npz").open("wb") as file:
        np.savez(file, **model._replace(centres=model.centres[::-1])._asdict())
    assert not labels_folder(new, config(model=str(moved))).exists()


def test_clusters_that_cannot_be_used(store, tmp_path):
    with pytest.raises(UserError, match=r"pseudo_labels\.model='.*nothing' holds no clusters"):
        ensure_labels(store, config(model=str(tmp_path / "nothing")))
    arrays = {"mean": np.zeros(64), "projection": np.zeros((64, 4)), "centres": np.zeros((3, 4))}
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(UserError, match=r"shapes \[\(64,\), \(64, 4\), \(3, 4\)\], not"):
        ensure_labels(store, config(model=str(tmp_path)))


def test_it_finds_clusters_that_are_there(tmp_path, monkeypatch):
    # Eight prototypes with noise: pseudo labels and prototypes are the same partition.
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 120, (8, 128))
    truth = rng.integers(0, 8, 400)
    noisy = np.clip(prototypes[truth] + rng.integers(-4, 5, (400, 128)), 0, 255).astype(np.uint8)
    model = pseudo_labels.fit(noisy, 8, 6, seed=0)
    labels = assign(model, noisy, 0.9)
    assert (labels >= 0).all()
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clusters": 451}, r"num_clusters=451 must lie in \[1, 300\]"),
        ({"num_clusters": 400, "fit_samples": 350}, r"num_clusters=400 must lie in \[1, 350\]"),
        ({"pca_dim": 129}, r"pca_dim=129 must lie in \[1, 128\]"),
        ({"num_clusters": 0}, r"num_clusters=0 must"),
    ],
)
def test_impossible_sizes(store, change, message):
    with pytest.raises(UserError, match=message):
        ensure_labels(store, config(**change))


def test_damaged_files_are_named(store):
    ensure_labels(store, config())
    folder = labels_folder(store, config())
    (folder / "model.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"model\.npz is not a cluster model"):
        load_model(folder)
    np.save(folder / "labels.npy", np.zeros(3, np.int32))
    with pytest.raises(UserError, match="delete"):
        ensure_labels(store, config())
    (folder / "labels.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"labels\.npy is damaged"):
        ensure_labels(store, config())


def test_a_full_disk_leaves_no_half_labels(store, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pseudo_labels, "write_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        ensure_labels(store, config())
    assert list((store.path / "labels").iterdir()) == []
