"""Pages that are linked by their SIFT descriptors: the rule, the file, and what it is used for."""

import csv

import numpy as np
import pytest
from store_helpers import make_store
from toy import toy

from saghog_jax import verify
from saghog_jax.configs import common, finetune
from saghog_jax.configs import verify as verify_config
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels import page_links, pseudo_labels, sift_vlad
from saghog_jax.input_pipeline.labels.page_links import ensure_links, link
from saghog_jax.input_pipeline.store.opening import open_store
from saghog_jax.training.labels import make_labels


def config(**changes):
    links = common.page_links_config()
    links.update({"words": 4, **changes})
    return links


def linked_by_loops(x, neighbours):
    """The rule, page by page: which pairs ask for each other, then classes by flooding."""
    p = len(x)
    wanted = []
    for i in range(p):
        others = sorted(((float(x[i] @ x[j]), -j) for j in range(p) if j != i), reverse=True)
        drops = [others[k][0] - others[k + 1][0] for k in range(min(neighbours, p - 2))]
        first = drops.index(max(drops)) + 1
        wanted.append({-j for _, j in others[:first]})
    classes = [-1] * p
    for start in range(p):
        if classes[start] < 0:
            new, open_pages = max(classes) + 1, [start]
            while open_pages:
                i = open_pages.pop()
                classes[i] = new
                open_pages += [j for j in wanted[i] if i in wanted[j] and classes[j] < 0]
    return classes


@pytest.mark.parametrize("neighbours", [1, 2, 3, 5])
def test_links_against_loops(neighbours, monkeypatch):
    rng = np.random.default_rng(neighbours)
    x = rng.normal(size=(12, 6)).repeat(3, axis=0) + 0.9 * rng.normal(size=(36, 6))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    expected = linked_by_loops(x, neighbours)
    assert 1 < len(set(expected)) < 36
    np.testing.assert_array_equal(link(x, neighbours), expected)
    # Five pages at a time.
    monkeypatch.setattr(page_links, "_CHUNK_VALUES", 5 * 36)
    np.testing.assert_array_equal(link(x, neighbours), expected)


def test_hands_that_are_far_apart_are_found_whatever_their_number_of_pages():
    rng = np.random.default_rng(0)
    hands = np.repeat(np.arange(5), [2, 3, 4, 2, 4])
    x = np.eye(40, dtype=np.float32)[hands] + 0.05 * rng.normal(size=(15, 40)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(link(x, 3), hands)


@pytest.mark.parametrize("pages", [1, 2])
def test_too_few_pages_for_a_drop_are_not_linked(pages):
    np.testing.assert_array_equal(link(np.ones((pages, 1), np.float32), 3), np.arange(pages))


def test_classes_are_saved_with_the_pages_and_read_again(tmp_path, monkeypatch):
    store, _ = make_store(tmp_path / "store", [40, 0, 50, 30, 60])
    labels = ensure_links(store, config())
    assert labels.shape == (len(store),)
    assert labels.dtype == np.int32
    (folder,) = (store.path / "links").iterdir()
    with (folder / "pages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["page_id"] for row in rows] == [page.page_id for page in store.manifest.pages]
    of_page = np.array([int(row["class"]) for row in rows])
    np.testing.assert_array_equal(labels, of_page[store.index["page"]])
    monkeypatch.setattr(page_links, "link", lambda *_: pytest.fail("linked again"))
    np.testing.assert_array_equal(ensure_links(store, config()), labels)


def test_every_field_counts(tmp_path):
    store, _ = make_store(tmp_path / "store", [60] * 12)
    labels = ensure_links(store, config())
    assert (labels != ensure_links(store, config(neighbours=1))).any()
    assert (labels != ensure_links(store, config(words=9))).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbours": 0}, r"config\.links\.neighbours=0 must be at least 1"),
        ({"words": 0}, r"config\.links\.words=0 must be at least 1"),
        ({"words": 121}, "words=121 is larger than the number of patches of the store, 120"),
    ],
)
def test_impossible_fields(tmp_path, change, message):
    store, _ = make_store(tmp_path / "store", [40] * 3)
    with pytest.raises(UserError, match=message):
        ensure_links(store, config(**change))


def test_a_full_disk_leaves_no_half_links(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    store, _ = make_store(tmp_path / "store", [40] * 3)
    monkeypatch.setattr(pseudo_labels, "write_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        ensure_links(store, config())
    assert list((store.path / "links").iterdir()) == []


def test_damage_is_found(tmp_path):
    store, _ = make_store(tmp_path / "store", [40] * 3)
    ensure_links(store, config())
    (table,) = (store.path / "links").glob("*/pages.csv")
    asked = verify_config.get_config()
    asked.stores = str(store.path)
    verify.run(asked, tmp_path)
    table.write_text("page_id,class\n")
    with pytest.raises(UserError, match="links.* has changed since it was written"):
        verify.run(asked, tmp_path)


def test_writers_of_drawn_pages_are_linked_for_finetuning(tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    write_corpus(pages, Corpus(8, 0, pages=3, width=960, height=480, lines=6), workers=1)
    asked = toy(finetune.get_config("small,labels=linked"), tmp_path)
    asked.store.max_patches_per_page = 1000
    store = open_store(asked.data, asked.store)
    labels = make_labels(asked, store)
    first = np.unique(store.index["page"], return_index=True)[1]
    classes, writers = labels[first], store.writer_ids[first]
    same = writers[:, None] == writers
    linked = classes[:, None] == classes
    np.fill_diagonal(same, False)
    np.fill_diagonal(linked, False)
    assert (linked & same).sum() >= 0.5 * same.sum()
    assert (linked & same).sum() >= 0.9 * linked.sum()
    # Not the pages, and not the writers as they are known.
    assert len(np.unique(classes)) < len(store.manifest)


def test_words_and_vectors_of_no_descriptors():
    words = sift_vlad.fit_words(iter([np.eye(128, dtype=np.uint8) * 9]), 4)
    assert words.shape == (4, 128)
    found = sift_vlad.page_vectors([np.zeros((0, 128), np.uint8)], words)
    np.testing.assert_array_equal(found, np.zeros((1, 512)))
