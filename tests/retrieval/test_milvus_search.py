"""Milvus in a local file against exact search."""

import sys

import numpy as np
import pytest
from planted import page, pages_of, planted

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import milvus_search, search
from saghog_jax.retrieval.metrics import encode_labels

NO_EXTRA = "the extra milvus is not installed, or milvus-lite has no wheel for this system"


@pytest.fixture
def client_of():
    """Opens a database once more, as the search does."""
    pymilvus = pytest.importorskip("pymilvus", reason=NO_EXTRA)
    pytest.importorskip("milvus_lite", reason=NO_EXTRA)
    return lambda file: pymilvus.MilvusClient(str(file))


@pytest.fixture
def collection(tmp_path):
    return planted(tmp_path / "e", pages_of(60, 6), noise=1.0, dim=32)


def by_milvus(e, uri, k=10, column="", index="", rows=None):
    own = np.arange(len(e)) if rows is None else rows
    queries = e.descriptors[own]
    values = e.column(column)[own] if column else None
    return milvus_search.search(queries, e.descriptors, e, k, str(uri), index, own, column, values)


def by_exact(e, k=10, column=""):
    own, groups = np.arange(len(e)), encode_labels(e.column(column)) if column else None
    return search.search(e.descriptors, e.descriptors, k, own, groups, groups)


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist())])


@pytest.mark.parametrize("column", ["", "sheet", "writer"])
def test_recall_of_the_exact_search(tmp_path, client_of, collection, column):
    rows, values = by_milvus(collection, tmp_path / "m.db", column=column)
    exact, similarity = by_exact(collection, column=column)
    assert recall(rows, exact) >= 0.98
    np.testing.assert_allclose(values, similarity, atol=2e-6)
    groups = collection.column(column) if column else np.arange(len(collection))
    assert not (groups[rows] == groups[:, None]).any()


def test_ids_writers_and_groups_are_fields(tmp_path, client_of, collection):
    by_milvus(collection, tmp_path / "m.db")
    client = client_of(tmp_path / "m.db")
    (name,) = client.list_collections()
    condition = 'writer == "w03" and sheet == "3-1"'
    records = client.query(name, filter=condition, output_fields=["page_id", "row_number"])
    client.close()
    assert sorted(r["page_id"] for r in records) == ["w03/p2.png", "w03/p3.png"]
    assert sorted(r["row_number"] for r in records) == [20, 21]


def test_groups_of_any_text(tmp_path, client_of):
    names = ['say "no"', "back\\slash", "it's", "Bébé", "a{b}", ""]
    pages = [page(f"{i}.png", extra={"sheet": names[i // 2]}) for i in range(12)]
    e = planted(tmp_path / "e", pages)
    rows, values = by_milvus(e, tmp_path / "m.db", k=12, column="sheet")
    exact, _ = by_exact(e, k=12, column="sheet")
    np.testing.assert_array_equal(rows, exact)
    assert np.isneginf(values[rows < 0]).all()
    # Pages without a group exclude only themselves.
    assert (rows[:10] >= 0).sum(1).tolist() == [10] * 10
    assert (rows[10:] >= 0).sum(1).tolist() == [11] * 2


def test_a_gallery_is_inserted_once(tmp_path, client_of, collection, caplog):
    caplog.set_level("INFO")
    file = tmp_path / "m.db"
    first = by_milvus(collection, file)
    again = by_milvus(collection, file)
    np.testing.assert_array_equal(first[0], again[0])
    assert caplog.text.count("inserting 360 pages") == 1
    other = planted(tmp_path / "other", pages_of(60, 6), noise=1.0, dim=32, seed=1)
    np.testing.assert_array_equal(by_milvus(other, file)[0], by_exact(other)[0])
    client = client_of(file)
    assert len(client.list_collections()) == 2
    # An interrupted insertion is made anew.
    for name in client.list_collections():
        client.delete(name, filter="row_number < 100")
    client.close()
    np.testing.assert_array_equal(by_milvus(collection, file)[0], first[0])
    assert caplog.text.count("inserting 360 pages") == 3


@pytest.mark.parametrize("index", ["", "IVF_FLAT"])
def test_the_index_is_the_named_one(tmp_path, client_of, collection, index):
    by_milvus(collection, tmp_path / "m.db", index=index)
    client = client_of(tmp_path / "m.db")
    (name,) = client.list_collections()
    described = client.describe_index(name, client.list_indexes(name)[0])
    client.close()
    assert described["index_type"] == (index or "FLAT")


def test_float16_and_messages(tmp_path, client_of, monkeypatch):
    e = planted(tmp_path / "e", pages_of(20, 6), dim=32, dtype="float16")
    monkeypatch.setattr(milvus_search, "_MESSAGE_VALUES", 7 * 32)
    monkeypatch.setattr(milvus_search, "_MESSAGE_QUERIES", 11)
    rows, _ = by_milvus(e, tmp_path / "m.db", column="sheet")
    assert recall(rows, by_exact(e, column="sheet")[0]) >= 0.98


def test_mistakes(tmp_path, client_of, collection):
    def error(**fields):
        with pytest.raises(UserError) as caught:
            by_milvus(collection, **{"uri": tmp_path / "m.db", "rows": np.arange(2)} | fields)
        return str(caught.value)

    assert "http://127.0.0.1:1 does not answer" in error(uri="http://127.0.0.1:1")
    assert "MILVUS_TOKEN" in error(uri="http://127.0.0.1:1")
    assert "x.sqlite: expected an address" in error(uri="x.sqlite")
    assert "config.top_k=16384: Milvus finds at most 16,383" in error(k=16_384)
    assert "exclude_group='x0' cannot be a field of Milvus, known: writer" in error(column="x0")


def test_an_error_of_the_server_is_one_line(tmp_path, client_of, collection, monkeypatch):
    pymilvus = pytest.importorskip("pymilvus")

    def fail(*_):
        raise pymilvus.MilvusException(message="the disk is full")

    monkeypatch.setattr(milvus_search, "_filled", fail)
    with pytest.raises(UserError, match=r"Milvus at .*m\.db: the disk is full"):
        by_milvus(collection, tmp_path / "m.db")


def test_without_the_extra(tmp_path, collection, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match=r"needs pymilvus: pip install 'saghog_jax\[milvus\]'"):
        by_milvus(collection, tmp_path / "m.db")


def test_without_a_local_database(tmp_path, client_of, collection, monkeypatch):
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with pytest.raises(UserError, match=r"needs milvus_lite: .* an address of a server"):
        by_milvus(collection, tmp_path / "m.db")
