import json
import threading

import numpy as np
import pytest
from store_helpers import make_store

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.store import reader as store_module
from saghog_jax.input_pipeline.store.reader import Store

COUNTS = [5, 0, 7, 1, 0, 0, 9]


@pytest.fixture
def stored(tmp_path):
    return make_store(tmp_path / "store", COUNTS)


def test_gather_returns_the_asked_rows_in_the_asked_order(stored):
    store, arrays = stored
    indices = np.random.default_rng(1).integers(0, len(store), 100)
    batch = store.gather(indices)
    np.testing.assert_array_equal(batch["patches"], arrays["patches"][indices])
    np.testing.assert_array_equal(batch["ink"], arrays["ink"][indices])
    np.testing.assert_array_equal(store.descriptors(indices), arrays["descriptors"][indices])
    assert batch["patches"].dtype == batch["ink"].dtype == np.uint8


def test_gather_of_nothing(stored):
    batch = stored[0].gather(np.empty(0, np.int64))
    assert batch["patches"].shape == (0, 32, 32, 3)
    assert batch["ink"].shape == (0, 128)


@pytest.mark.parametrize("index", [-1, 22])
def test_indices_outside_are_refused(stored, index):
    with pytest.raises(IndexError, match=r"\[0, 22\)"):
        stored[0].gather(np.array([0, index]))


def test_index_writers_and_skipped(stored):
    store, arrays = stored
    assert len(store) == sum(COUNTS)
    for key in ("page", "x", "y"):
        np.testing.assert_array_equal(store.index[key], arrays[key])
        assert store.index[key].dtype == np.int32
    names = [*store.manifest.writers, ""]
    expected = [store.manifest.pages[row].writer for row in arrays["page"]]
    assert [names[i] for i in store.writer_ids] == expected
    assert "" in expected
    # Class ids are those of sorted names, the same in every run.
    assert names[:-1] == sorted(names[:-1])
    assert store.skipped == [(f"p{i}.png", "a blank page") for i in (1, 4, 5)]


def test_arrays_open_with_numpy_alone(stored, tmp_path):
    _, arrays = stored
    parts = [
        np.load(path, allow_pickle=False) for path in sorted(tmp_path.glob("**/shards/*/ink.npy"))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), arrays["ink"])


def test_threads_read_the_same(stored):
    store, arrays = stored
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            indices = rng.integers(0, len(store), 30)
            if not np.array_equal(store.gather(indices)["patches"], arrays["patches"][indices]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_folder_without_a_store(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no patch store.*configs/prepare\.py"):
        Store.open(tmp_path)


def test_a_half_written_store_is_refused(stored):
    store, _ = stored
    (store.path / "store.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        Store.open(store.path)


def edit_info(store, **changes):
    path = store.path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_format_version_is_refused(stored):
    edit_info(stored[0], version=99)
    with pytest.raises(UserError, match="format version 99, this program reads version 1"):
        Store.open(stored[0].path)


def test_a_foreign_store_json_is_refused(stored):
    edit_info(stored[0], format="something else")
    with pytest.raises(UserError, match="does not describe a patch store"):
        Store.open(stored[0].path)


def test_a_damaged_store_json_is_refused(stored):
    (stored[0].path / "store.json").write_text('{"format":')
    with pytest.raises(UserError, match="damaged"):
        Store.open(stored[0].path)


def test_a_cut_off_array_is_refused(stored):
    path = stored[0].path / "shards" / "00000" / "patches.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"patches\.npy is damaged"):
        Store.open(stored[0].path)


def test_an_array_of_another_shape_is_refused(stored):
    np.save(stored[0].path / "shards" / "00000" / "ink.npy", np.zeros((5, 127), np.uint8))
    with pytest.raises(UserError, match=r"expected uint8 \[5, 128\]"):
        Store.open(stored[0].path)


def test_a_rule_without_descriptors_says_so(stored, monkeypatch):
    store, _ = stored
    for shard in store.info["shards"]:
        shard["sha256"].pop("descriptors.npy")
    with pytest.raises(UserError, match="keeps no descriptors; the rule 'offline' does"):
        store.descriptors(np.array([0]))


def test_too_many_shards_for_this_machine(stored, monkeypatch):
    monkeypatch.setattr(store_module.resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(UserError, match="pages_per_shard"):
        Store.open(stored[0].path)


def test_the_limit_of_open_files_is_raised_as_needed(stored, monkeypatch):
    limits = []
    monkeypatch.setattr(store_module.resource, "getrlimit", lambda _: (64, 4096))
    monkeypatch.setattr(store_module.resource, "setrlimit", lambda _, pair: limits.append(pair))
    Store.open(stored[0].path)
    assert limits
    assert all(soft > 3 * 4 and hard == 4096 for soft, hard in limits)
