"""Pooling on the device against the plain form, pages kept one by one, folders in one file."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from planted import pages_of, planted

from saghog_jax.embed import split_remark
from saghog_jax.embedding import journal
from saghog_jax.embedding.describers import PatchBatch, PatchDescriber
from saghog_jax.embedding.journal import Journal, PageResult
from saghog_jax.embedding.pooler import PagePooler, Pooling
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.models.netrvlad import page_sum, vlad
from saghog_jax.retrieval import aggregate, exports, whitening

MESH = ConfigDict({"data": -1, "fsdp": 1})
V, D = 3, 5


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((V, D)).astype(np.float32)
    kernel = jnp.asarray(rng.standard_normal((32 * 32 * 3, V + D)) / 30, jnp.float32)

    def describe(variables, seen):
        y = seen.images.reshape(seen.images.shape[0], -1) @ variables["kernel"]
        return y[:, V:], jax.nn.softmax(y[:, :V])

    def sums(variables, seen, segments):
        x, a = describe(variables, seen)
        return page_sum(a, x, jnp.asarray(centroids), segments).reshape(segments.shape[0], -1)

    return PatchDescriber(
        "toy", "netrvlad", "page", {"kernel": kernel}, describe, sums, centroids, False
    )


def cuts(counts=(5, 0, 40, 1, 7)):
    rng = np.random.default_rng(1)
    empty = np.zeros(0, np.int32)
    return [
        Cut(
            rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
            np.zeros((n, 128), np.uint8),
            empty,
            empty,
            None,
        )
        for n in counts
    ]


def plain_vectors(model, cut, white=None):
    images = (cut.patches.astype(np.float32) / 255 - 0.5) / 0.5
    x, a = model.describe(model.variables, PatchBatch(jnp.asarray(images), None))
    y = np.asarray(vlad(a, x, jnp.asarray(model.centroids))).reshape(len(x), -1)
    y = aggregate.l2_normalize(y)
    return y if white is None else whitening.apply(white, y)


@pytest.fixture(scope="module")
def white(model):
    x = np.concatenate([plain_vectors(model, cut) for cut in cuts((60,))])
    return whitening.fit(x, 6)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("mode", aggregate.POOLINGS)
def test_pages_in_mixed_batches_are_pooled_as_alone(model, white, mode, whitened):
    white = white if whitened else None
    pooling = Pooling(mode, 0.5, [white])
    found = list(PagePooler([model], pooling, 16, 3, MESH).pages(iter(cuts())))
    assert len(found) == 5
    for (ours,), cut in zip(found, cuts()):
        width = 6 if whitened else V * D
        assert ours.shape == (width,)
        if not len(cut.patches):
            assert not ours.any()
            continue
        plain = aggregate.pool(plain_vectors(model, cut, white), mode, 0.5)
        # float32 on both sides, of up to 40 unit vectors; gmp solves a system of condition 80.
        np.testing.assert_allclose(ours, plain, atol=2e-5 if mode != "gmp" else 1e-4)


@pytest.mark.parametrize("mode", aggregate.POOLINGS)
def test_pages_that_are_there_keep_their_places(model, mode):
    """Whatever is left out, the others come out the same to the bit."""
    pooler = PagePooler([model], Pooling(mode, 0.5, [None]), 16, 3, MESH)
    every = [found for (found,) in pooler.pages(iter(cuts()))]
    for there in ({0}, {1, 2}, {0, 1, 3}, set(range(5))):
        given = [len(c.patches) if i in there else c for i, c in enumerate(cuts())]
        for i, (found,) in enumerate(pooler.pages(iter(given))):
            np.testing.assert_array_equal(found, np.zeros_like(found) if i in there else every[i])


def test_patch_descriptors_themselves(model):
    pooler = PagePooler([model], Pooling("sum", 1.0, [None]), 16, 3, MESH)
    every = np.concatenate([plain_vectors(model, cut) for cut in cuts() if len(cut.patches)])
    for at_most in (7, 30, 100):
        (found,) = pooler.vectors(iter(cuts()), at_most)
        np.testing.assert_allclose(found, every[:at_most], atol=1e-6)


def test_batch_that_devices_do_not_divide(model):
    with pytest.raises(UserError, match="local_batch_size=12 is not divisible by 8"):
        PagePooler([model], Pooling("sum", 1.0, [None]), 12, 3, MESH)


def rows(page):
    return [np.full(3, page, np.float32), np.full(2, -page, np.float32)]


MODELS = [("a", 3), ("b", 2)]


def keep(folder, pages, process=0):
    parts = Journal(folder, MODELS, process)
    for page in pages:
        parts.append(page, rows(page), PageResult(page, 2 * page, "" if page else "blank"))
    parts.close()


def test_pages_are_kept_by_any_number_of_processes(tmp_path):
    keep(tmp_path, [0, 2], 0)
    keep(tmp_path, [1], 1)
    keep(tmp_path, [4], 0)
    parts = Journal(tmp_path, MODELS, 7)
    assert parts.read() == {i: PageResult(i, 2 * i, "" if i else "blank") for i in (0, 1, 2, 4)}
    for model in (0, 1):
        blocks = list(parts.blocks(model, [4, 0, 1, 2], 3))
        assert [len(block) for block in blocks] == [3, 1]
        expected = np.stack([rows(page)[model] for page in (4, 0, 1, 2)])
        np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("damage", ["line", "rows", "value", "text"])
def test_what_was_half_written_is_not_there(tmp_path, damage):
    keep(tmp_path, [0, 1, 2])
    journal, values = tmp_path / "0.jsonl", tmp_path / "0-b.f32"
    if damage == "line":
        journal.write_bytes(journal.read_bytes()[:-3])
    elif damage == "rows":
        values.write_bytes(values.read_bytes()[:-1])
    elif damage == "value":
        values.write_bytes(values.read_bytes()[:-1] + b"\x55")
    else:
        journal.write_text(journal.read_text() + "{}\n")
    there = [0, 1, 2] if damage == "text" else [0, 1]
    assert sorted(Journal(tmp_path, MODELS).read()) == there
    # What goes on begins behind the last whole page.
    keep(tmp_path, [5])
    parts = Journal(tmp_path, MODELS)
    assert sorted(parts.read()) == [*there, 5]
    (block,) = parts.blocks(1, [5, 1], 9)
    np.testing.assert_array_equal(block, np.stack([rows(5)[1], rows(1)[1]]))


def test_parts_of_something_else_are_removed(tmp_path):
    for input_digest, left in (("x", 0), ("x", 1), ("y", 0)):
        journal.begin(tmp_path / "p", input_digest)
        assert len(Journal(tmp_path / "p", MODELS).read()) == left
        keep(tmp_path / "p", [3])


@pytest.mark.parametrize("values", [32, 1 << 24])
def test_folders_in_one_file(tmp_path, monkeypatch, values):
    monkeypatch.setattr(exports, "_BLOCK_VALUES", values)
    e = planted(tmp_path / "e", pages_of(3, 3))
    with np.load(exports.write(e, "npz"), allow_pickle=False) as file:
        np.testing.assert_array_equal(file["embeddings"], e.descriptors)
        assert file["page_ids"].tolist() == e.page_ids.tolist()
        assert file["sheet"].tolist() == e.table["sheet"].tolist()
    assert zipfile.ZipFile(tmp_path / "e" / "embeddings.npz").testzip() is None
    from pyarrow import parquet

    table = parquet.read_table(exports.write(e, "parquet"))
    assert table.column_names == ["page_id", *e.table, "embedding"]
    assert table["writer"].to_pylist() == e.writers.tolist()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), e.descriptors)
    with pytest.raises(UserError, match="known: npz, parquet"):
        exports.write(e, "xlsx")


def test_a_remark_tells_that_pages_of_other_splits_are_left_out(tmp_path):
    pages = Manifest(tmp_path, tuple(pages_of(1, 2)), ())
    assert split_remark(pages, "test").startswith(" of the split 'test' (--config.data.split= ")
    unsplit = Manifest(tmp_path, tuple(page._replace(split="") for page in pages.pages), ())
    assert split_remark(unsplit, "test") == ""
    assert split_remark(pages, "") == ""
