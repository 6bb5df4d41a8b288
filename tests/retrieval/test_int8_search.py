"""Search in 8-bit codes against exact search, and the index on disk."""

import json

import numpy as np
import pytest
from planted import pages_of, planted

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import int8_search, search
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.retrieval.embeddings_writer import relabel, save_embeddings


def writers(p=3000, d=96, each=6, noise=1.6, seed=0, offset=0.0):
    """Descriptors around one direction a writer, whose variances fall off, beside a common part."""
    rng = np.random.default_rng(seed)
    labels = np.arange(p) // each
    spread = np.geomspace(1, 0.1, d)
    x = rng.standard_normal((p // each, d))[labels] + noise * rng.standard_normal((p, d))
    x = x * spread + offset * rng.standard_normal(d)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def index_of(x, folder):
    int8_search.write(folder, x)
    return int8_search.read(folder, x)


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist())])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("offset", [0.0, 5.0], ids=["centred", "with a common part"])
def test_nearly_all_of_the_nearest_pages_are_found(tmp_path, dtype, offset):
    x = writers(offset=offset)[0].astype(dtype)
    own = np.arange(0, 3000, 30)
    queries = x[own]
    exact, _ = search.search(queries, x, 10, own)
    index = index_of(x, tmp_path)
    rows, values = int8_search.search(queries, x, index, 10, own)
    assert recall(rows, exact) >= 0.99
    # Similarities are those of the descriptors, up to rounding in float32.
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    expected = np.einsum("qd,qkd->qk", unit[own], unit[rows])
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert (np.diff(values, axis=1) <= 0).all()


def test_codes_are_the_descriptors_up_to_half_a_step(tmp_path):
    x = 5 * writers(p=300)[0]
    index = index_of(x, tmp_path)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    # 1,000 evenly spaced rows are all 300 rows.
    decoded = index.codes * index.scales[:, None] + unit.mean(0)
    assert np.abs(decoded - unit).max() <= 0.5001 * index.scales.max()
    assert np.abs(np.asarray(index.codes, np.int32)).max() == 127


def test_own_page_and_group_are_left_out(tmp_path):
    x, labels = writers(p=60)
    groups = np.where(labels < 5, labels, -1)
    index = index_of(x, tmp_path)
    own = np.arange(60)
    expected = search.search(x, x, 60, own, groups, groups)
    rows, values = int8_search.search(x, x, index, 60, own, groups, groups)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_allclose(values, expected[1], atol=1e-6)
    assert (rows[:30] == -1).sum() == 30 * 6
    assert np.isneginf(values[rows < 0]).all()


def test_pages_of_equal_similarity_stay_in_their_order(tmp_path):
    x = np.repeat(np.eye(4, 8, dtype=np.float32), 3, axis=0)
    rows, _ = int8_search.search(x[:1], x, index_of(x, tmp_path), 3)
    assert rows.tolist() == [[0, 1, 2]]


def test_codes_of_a_block_do_not_depend_on_its_size(tmp_path, monkeypatch):
    x = writers(p=300)[0]
    whole = index_of(x, tmp_path / "whole")
    monkeypatch.setattr(int8_search, "_BLOCK_VALUES", 7 * 96)
    parts = index_of(x, tmp_path / "parts")
    # A block of another size may be summed in another order: a code may lie at another step.
    assert np.abs(whole.codes.astype(int) - parts.codes).max() <= 1
    np.testing.assert_allclose(whole.scales, parts.scales, rtol=1e-5)


def test_bad_arguments(tmp_path):
    x = writers(p=60)[0]
    index = index_of(x, tmp_path)
    with pytest.raises(ValueError, match="width 4 against a gallery of width 96"):
        int8_search.search(x[:1, :4], x, index, 1)
    with pytest.raises(ValueError, match="at least 1"):
        int8_search.search(x[:1], x, index, 0)
    wide = np.zeros((2, 4097), np.float32)
    with pytest.raises(UserError, match="4096 at most, these have 4097: take config.backend=exact"):
        int8_search.write(tmp_path / "wide", wide)


def test_an_index_belongs_to_its_descriptors_alone(tmp_path):
    x = writers(p=300)[0]
    int8_search.write(tmp_path, x)
    assert int8_search.read(tmp_path, x) is not None
    assert int8_search.read(tmp_path, x.astype(np.float16)) is None
    assert int8_search.read(tmp_path, x[:-1]) is None
    other = x.copy()
    other[17] = other[18]
    assert int8_search.read(tmp_path, other) is None


def test_a_damaged_or_unfinished_index_is_none(tmp_path):
    x = writers(p=300)[0]
    for name, content in (
        ("index.json", "{"),
        ("index.json", json.dumps({"version": 2, "digest": int8_search.digest_of(x)})),
        ("codes.npy", ""),
        ("scales.npy", "x"),
    ):
        int8_search.write(tmp_path, x)
        (tmp_path / name).write_text(content)
        assert int8_search.read(tmp_path, x) is None, name
    int8_search.write(tmp_path, x)
    np.save(tmp_path / "scales.npy", np.ones(3, np.float32))
    assert int8_search.read(tmp_path, x) is None
    int8_search.remove(tmp_path)
    assert int8_search.read(tmp_path, x) is None
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_index(tmp_path, monkeypatch):
    x = writers(p=300)[0]
    int8_search.write(tmp_path, x)
    monkeypatch.setattr(int8_search, "_encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        int8_search.write(tmp_path, x)
    assert int8_search.read(tmp_path, x) is None
    assert not list(tmp_path.iterdir())


def test_saved_with_many_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_search, "_FEWEST_PAGES", 60)
    folder = tmp_path / "e" / int8_search.FOLDER
    planted(tmp_path / "e", pages_of(5, 10))
    assert not folder.exists()
    pages = pages_of(6, 10)
    e = planted(tmp_path / "e", pages)
    index = int8_search.read(folder, e.descriptors)
    assert index.codes.shape == (60, 16)
    # Labels do not touch it; fewer pages remove it.
    relabel(tmp_path / "e", [p._replace(writer="x") for p in pages], tmp_path / "pages")
    assert int8_search.read(folder, load_embeddings(tmp_path / "e").descriptors) is not None
    planted(tmp_path / "e", pages_of(5, 10))
    assert not list(folder.iterdir())
    wide = np.eye(60, 4097, dtype=np.float32)
    save_embeddings(tmp_path / "wide", wide, pages, tmp_path, {})
    assert not (tmp_path / "wide" / int8_search.FOLDER).exists()


@pytest.mark.parametrize(("pages", "width", "useful"), [(5000, 4096, True), (4999, 64, False),
                                                  (5000, 4097, False)])  # fmt: skip
def test_the_rule_of_an_index(pages, width, useful):
    assert int8_search.is_useful(pages, width) is useful
