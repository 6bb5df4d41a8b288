"""Pages are embedded once, whatever their names, labels, order and company are."""

import importlib

import cv2
import numpy as np
import pytest
from toy import toy

from saghog_jax.configs import embed, pretrain
from saghog_jax.embedding import folders
from saghog_jax.embedding.reuse import KEYS, Record
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.stages import run_stage

stage = importlib.import_module("saghog_jax.embed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Pages in `corpus`, and a model of them."""
    folder = tmp_path_factory.mktemp("reuse")
    (folder / "pages").mkdir()
    corpus = Corpus(train_writers=2, test_writers=2, pages=2, width=300, height=160, lines=2)
    write_corpus(folder / "pages", corpus, workers=1)
    run_stage(toy(pretrain.get_config(), folder, total_steps=1), folder / "pretrain")
    return folder


@pytest.fixture
def scans(model, tmp_path):
    """A folder `scans` of four pages."""
    (tmp_path / "scans").mkdir()
    for number, image in enumerate(sorted((model / "pages").rglob("*.png"))[:4]):
        (tmp_path / "scans" / f"IMG{number}.png").write_bytes(image.read_bytes())
    return tmp_path / "scans"


@pytest.fixture
def cut(monkeypatch):
    """The paths of the pages that were cut."""
    paths, stream_cuts = [], stage.stream_cuts

    def recorded(root, pages, *rest):
        paths.extend(page.path for page in pages)
        return stream_cuts(root, pages, *rest)

    monkeypatch.setattr(stage, "stream_cuts", recorded)
    return paths


def config_of(model, tmp_path, pages, **changes):
    places = {
        "data.pages": str(pages),
        "data.split": "",
        "data.cache": str(tmp_path / "cache"),
        "store.root": str(tmp_path / "prepare"),
        "checkpoint": str(model / "pretrain"),
        "compare": ("random",),
        "scales": (1.0, 0.5),
    }
    return toy(embed.get_config("plain"), model, **(places | changes))


def table_of(tmp_path, lines, header="path,writer"):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def by_name(folder):
    e = load_embeddings(folder)
    return dict(zip(e.page_ids.tolist(), np.array(e.descriptors), strict=True)), e


def test_a_table_in_place_of_a_folder_embeds_the_new_pages_alone(model, scans, cut):
    tmp_path, out = scans.parent, scans.parent / "embed"
    run_stage(config_of(model, tmp_path, scans), out)
    assert sorted(cut) == [f"IMG{i}.png" for i in range(4)]
    before, earlier = by_name(out)
    earlier_random = by_name(out / "random")[0]
    cut.clear()
    page = cv2.imread(str(scans / "IMG3.png"))
    cv2.imwrite(str(scans / "new.png"), page[:, ::-1])
    lines = [f"scans/IMG{i}.png,w{i}" for i in (2, 0, 3)]
    lines.insert(1, "scans/new.png,w9")
    result = run_stage(config_of(model, tmp_path, table_of(tmp_path, lines)), out)
    assert cut == ["scans/new.png"]
    after, later = by_name(out)
    assert later.page_ids.tolist() == [line.split(",")[0] for line in lines]
    assert later.writers.tolist() == ["w2", "w9", "w0", "w3"]
    assert result.counts == {"pages": 4}
    for i in (0, 2, 3):
        np.testing.assert_array_equal(after[f"scans/IMG{i}.png"], before[f"IMG{i}.png"])
        np.testing.assert_array_equal(
            by_name(out / "random")[0][f"scans/IMG{i}.png"], earlier_random[f"IMG{i}.png"]
        )
        at, was = later.page_ids.tolist().index(f"scans/IMG{i}.png"), i
        for column in ("patch_count", "ink_pixels", "page_digest"):
            assert later.column(column)[at] == earlier.column(column)[was]
        assert later.meta["patches"][at] == earlier.meta["patches"][was]
    # The new page has the descriptor that it has in a new folder.
    run_stage(config_of(model, tmp_path, tmp_path / "table.csv"), tmp_path / "anew")
    for name, descriptor in by_name(tmp_path / "anew")[0].items():
        np.testing.assert_allclose(after[name], descriptor, atol=1e-5)
    assert not (out / "parts").exists()


def test_nothing_is_embedded_if_all_pages_are_there(model, scans, cut):
    tmp_path, out = scans.parent, scans.parent / "embed"
    run_stage(config_of(model, tmp_path, scans), out)
    before = by_name(out)[0]
    cut.clear()
    # A copy of a page has the descriptor of the page.
    (scans / "copy.png").write_bytes((scans / "IMG1.png").read_bytes())
    run_stage(config_of(model, tmp_path, scans), out)
    assert cut == []
    after, e = by_name(out)
    assert len(after) == 5
    np.testing.assert_array_equal(after["copy.png"], before["IMG1.png"])
    digests = dict(zip(e.page_ids.tolist(), e.digests, strict=True))
    assert digests["copy.png"] == digests["IMG1.png"]
    assert len(set(digests.values())) == 4


@pytest.mark.parametrize("change", ["content", "scale", "polarity", "box", "settings", "keys"])
def test_what_changes_the_picture_is_embedded_again(model, scans, cut, change):
    tmp_path, out = scans.parent, scans.parent / "embed"
    header = "path,scale,polarity,x0,y0,x1,y1"
    lines = [f"scans/IMG{i}.png,1,,,,," for i in range(4)]
    run_stage(config_of(model, tmp_path, table_of(tmp_path, lines, header)), out)
    cut.clear()
    changes = {}
    if change == "content":
        page = cv2.imread(str(scans / "IMG3.png"))
        cv2.imwrite(str(scans / "IMG1.png"), page[::-1])
    elif change == "settings":
        changes = {"store.min_ink": 0.02}
    elif change == "keys":
        (out / KEYS).write_text((out / KEYS).read_text()[:-2])
    else:
        cells = {"scale": "0.9,,,,,", "polarity": "1,dark_on_light,,,,", "box": "1,,0,0,200,150"}
        lines[1] = f"scans/IMG1.png,{cells[change]}"
    lines[2:] = lines[:1:-1]
    run_stage(config_of(model, tmp_path, table_of(tmp_path, lines, header), **changes), out)
    everything = [line.split(",")[0] for line in lines]
    assert cut == (everything if change in ("settings", "keys") else ["scans/IMG1.png"])


def test_an_embedding_that_was_stopped_goes_on_under_other_names(model, scans, cut, monkeypatch):
    tmp_path, out = scans.parent, scans.parent / "embed"
    append, appended = Record.append, []

    def stopping(record, view, *rest):
        if len(appended) == 5:
            raise KeyboardInterrupt
        appended.append(view)
        append(record, view, *rest)

    monkeypatch.setattr(Record, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_stage(config_of(model, tmp_path, scans), out)
    monkeypatch.setattr(Record, "append", append)
    cut.clear()
    table = table_of(tmp_path, [f"scans/IMG{i}.png,w" for i in (3, 2, 1, 0)])
    run_stage(config_of(model, tmp_path, table), out)
    # Two pages at two scales, and one scale of the third page, were finished.
    assert cut == ["scans/IMG3.png", "scans/IMG2.png"]
    run_stage(config_of(model, tmp_path, table), tmp_path / "anew")
    after, anew = by_name(out)[0], by_name(tmp_path / "anew")[0]
    for name, descriptor in anew.items():
        np.testing.assert_allclose(after[name], descriptor, atol=1e-5)


def test_rows_survive_a_stop_while_the_folder_is_replaced(model, scans, cut, monkeypatch):
    tmp_path, out = scans.parent, scans.parent / "embed"
    run_stage(config_of(model, tmp_path, scans), out)
    before, save = by_name(out)[0], folders.save_embeddings
    table = table_of(tmp_path, [f"scans/IMG{i}.png,w" for i in (3, 2, 1, 0)])
    cut.clear()

    def stopped(folder, *rest, **settings):
        save(folder, *rest, **settings)
        (folder / "meta.json").unlink()
        (folder / "embeddings.npy").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "save_embeddings", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stage(config_of(model, tmp_path, table), out)
    monkeypatch.setattr(folders, "save_embeddings", save)
    run_stage(config_of(model, tmp_path, table), out)
    assert cut == []
    for name, descriptor in by_name(out)[0].items():
        np.testing.assert_array_equal(descriptor, before[name.removeprefix("scans/")])
    assert not (out / "parts").exists()


def test_a_random_choice_of_patches_belongs_to_a_row(model, scans, cut):
    """Its seed is the row, so a page in another row is embedded again."""
    tmp_path, out = scans.parent, scans.parent / "embed"
    random = {"store.pick": "random", "store.max_patches_per_page": 5}
    run_stage(config_of(model, tmp_path, scans, **random), out)
    cut.clear()
    table = table_of(tmp_path, [f"scans/IMG{i}.png,w" for i in (3, 2, 1, 0)])
    run_stage(config_of(model, tmp_path, table, **random), out)
    assert len(cut) == 4
