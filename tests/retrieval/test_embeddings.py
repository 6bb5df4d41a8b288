"""The embeddings folder: it is read as written, and wrong content is refused in one line."""

import csv
import json
import unicodedata

import numpy as np
import pytest
from planted import page, pages_of, planted
from pyarrow import parquet

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import exports
from saghog_jax.retrieval.embeddings import check_comparable, load_embeddings
from saghog_jax.retrieval.embeddings_writer import relabel, save_embeddings

# The fields of a recipe that comparable embeddings share.
RECIPE = {
    "parts": [], "scales": [1.0], "input": "binary", "pooling": "sum", "gmp_lambda": 1.0,
    "patch_whitening": "", "rule": {"patch_size": 32},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    pages = [
        page("a.png", "x", "1", box=(0, 0, 5, 9), extra={"sheet": "s"}),
        page("a.png", "x", "2", box=(5, 0, 9, 9)),
        page('b "<é>,\n.png', "", "1"),
    ]
    planted(tmp_path / "e", pages, model="finetuned")
    return tmp_path / "e"


def test_saved_embeddings_are_loaded(folder, tmp_path):
    e = load_embeddings(folder)
    assert len(e) == 3
    assert e.descriptors.dtype == np.float32
    assert isinstance(e.descriptors, np.memmap)
    assert e.writers.tolist() == ["x", "x", ""]
    assert e.page_ids.tolist() == ["a.png#0,0,5,9", "a.png#5,0,9,9", 'b "<é>,\n.png']
    assert e.column("sheet").tolist() == ["s", "", ""]
    assert [e.box(i) for i in range(3)] == [(0, 0, 5, 9), (5, 0, 9, 9), None]
    assert e.image(0).resolve() == (tmp_path / "pages" / "a.png").resolve()
    assert e.name == "finetuned"
    assert e.meta["checkpoint"] == "abc"
    with pytest.raises(UserError, match=r"no column 'source', only: path, .*sheet"):
        e.column("source")


def test_pages_get_other_labels_and_keep_their_descriptors(folder, tmp_path):
    before = load_embeddings(folder)
    bits = (folder / "embeddings.npy").read_bytes()
    pages = [
        page("a.png", "y", "1", box=(0, 0, 5, 9), extra={"hand": "1"}),
        page("a.png", "x", "2", box=(5, 0, 9, 9)),
        page('b "<é>,\n.png', "", "1"),
    ]
    assert relabel(folder, pages, tmp_path / "pages")
    assert not relabel(folder, pages, tmp_path / "pages")
    after = load_embeddings(folder)
    assert after.writers.tolist() == ["y", "x", ""]
    assert after.column("hand").tolist() == ["1", "", ""]
    assert "sheet" not in after.table
    assert after.meta == before.meta
    assert relabel(folder, pages, tmp_path / "moved")
    image = load_embeddings(folder).image(0).resolve()
    assert image == (tmp_path / "moved" / "a.png").resolve()
    with pytest.raises(UserError, match="contains other pages"):
        relabel(folder, pages[::-1], tmp_path / "moved")
    assert (folder / "embeddings.npy").read_bytes() == bits


def test_labels_of_older_folders_are_composed(tmp_path):
    """Two Unicode forms of a name are one writer; ids stay as they are."""
    names = [unicodedata.normalize(form, "Bébé") for form in ("NFC", "NFD")]
    pages = [page(f"{name}.png", name, name, extra={"hand": name}) for name in names]
    e = planted(tmp_path / "e", pages)
    assert e.writers.tolist() == e.pages.tolist() == e.column("hand").tolist() == ["Bébé"] * 2
    assert e.page_ids.tolist() == [f"{name}.png" for name in names]


def test_numpy_and_csv_alone_open_it(folder):
    x = np.load(folder / "embeddings.npy", allow_pickle=False)
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert x.shape == (3, 16)
    assert [row["path"] for row in rows] == ["a.png", "a.png", 'b "<é>,\n.png']
    assert rows[0]["x1"] == "5"


def test_pages_and_embeddings_may_be_moved_together(folder, tmp_path):
    (tmp_path / "pages").mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pages").rename(tmp_path / "elsewhere" / "pages")
    folder.rename(tmp_path / "elsewhere" / "e")
    image = load_embeddings(tmp_path / "elsewhere" / "e").image(0)
    assert image.resolve() == (tmp_path / "elsewhere" / "pages" / "a.png").resolve()


def test_name_falls_back_to_the_folder(tmp_path):
    assert planted(tmp_path / "named", pages_of(1, 2)).name == "named"


def test_the_message_of_a_missing_folder_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*--config=configs/embed\.py"):
        load_embeddings(tmp_path / "none")


def test_an_interrupted_folder_is_incomplete(folder, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", killed)
    with pytest.raises(KeyboardInterrupt):
        planted(folder, pages_of(2, 2))
    with pytest.raises(UserError, match=r"incomplete.*configs/embed\.py"):
        load_embeddings(folder)
    monkeypatch.undo()
    assert len(planted(folder, pages_of(2, 2))) == 4


def test_other_files_in_the_folder_are_kept(folder):
    planted(folder / "random", pages_of(2, 2))
    planted(folder, pages_of(3, 2))
    assert len(load_embeddings(folder / "random")) == 4


def broken(folder, name, array):
    np.save(folder / f"{name}.npy", array, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("embeddings", np.zeros((3, 16)), "expected float32"),
        ("embeddings", np.zeros(3, np.float32), "expected float32"),
        ("embeddings", np.zeros((3, 8), np.float32), "width 8, but meta.json says 16"),
        ("embeddings", np.zeros((2, 16), np.float32), "has 3 rows, embeddings.npy 2"),
        ("embeddings", np.full((3, 16), np.nan, np.float32), r"row 0\) contains NaN"),
        ("embeddings", np.array([[{}]], object), "not a readable .npy file of plain values"),
        ("writers", np.array([1, 2, 3]), "expected strings"),
        ("writers", np.array([{}, {}, {}], object), "not a readable .npy file of plain values"),
        ("pages", np.array(["1", "2"]), "pages has 2 rows"),
        ("page_ids", np.array(["a", "a", "b"]), "'a' is listed twice"),
        ("page_ids", np.array(["a", "c", "b"]), "row 1 is 'a.png#0,0,5,9'"),
    ],
)
def test_damaged_arrays(folder, name, array, message):
    broken(folder, name, array)
    with pytest.raises(UserError, match=message):
        load_embeddings(folder)


def test_an_empty_gallery(folder):
    for name in ("writers", "pages", "page_ids"):
        np.save(folder / f"{name}.npy", np.zeros(0, "U1"))
    np.save(folder / "embeddings.npy", np.zeros((0, 16), np.float32))
    (folder / "manifest.csv").write_text("path,writer,page\n")
    with pytest.raises(UserError, match="contains no embeddings"):
        load_embeddings(folder)


def test_descriptors_are_written_block_by_block(tmp_path):
    pages = pages_of(2, 3)
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    save_embeddings(tmp_path / "e", (x[i : i + 4] for i in (0, 4)), pages, tmp_path, {})
    np.testing.assert_array_equal(load_embeddings(tmp_path / "e").descriptors, x)
    x[5, 0] = np.nan
    with pytest.raises(UserError, match=r"'w01/p2\.png' \(row 1\)"):
        save_embeddings(tmp_path / "e", (x[i : i + 4] for i in (0, 4)), pages, tmp_path, {})
    # An interrupted folder is incomplete.
    with pytest.raises(UserError, match="incomplete"):
        load_embeddings(tmp_path / "e")


def test_descriptors_may_be_float16(tmp_path):
    pages = pages_of(2, 3)
    x = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    whole = save_embeddings(tmp_path / "whole", x, pages, tmp_path, {}, "float16")
    blocks = (x[i : i + 4] for i in (0, 4))
    save_embeddings(tmp_path / "blocks", blocks, pages, tmp_path, {}, dtype="float16")
    e = load_embeddings(whole)
    assert isinstance(e.descriptors, np.memmap)
    assert e.descriptors.dtype == np.float16
    # Numbers of 11 bits: half a unit in the last place is 2 ** -11 of a number.
    np.testing.assert_allclose(e.descriptors, x, rtol=2**-11, atol=2**-25)
    np.testing.assert_allclose(np.linalg.norm(e.descriptors.astype(float), axis=1), 1, atol=1e-4)
    bits = [(tmp_path / name / "embeddings.npy").read_bytes() for name in ("whole", "blocks")]
    assert bits[0] == bits[1]
    with pytest.raises(UserError, match="unknown dtype 'float64', known: float32, float16"):
        save_embeddings(tmp_path / "e", x, pages, tmp_path, {}, "float64")
    x[2, 5] = 1e6
    with pytest.raises(UserError, match="NaN or infinity"), np.errstate(over="ignore"):
        save_embeddings(tmp_path / "e", x, pages, tmp_path, {}, "float16")


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_exports_of_float16_are_float32(tmp_path, file_format):
    e = planted(tmp_path / "e", pages_of(2, 3), dtype="float16")
    path = exports.write(e, file_format)
    if file_format == "npz":
        x = np.load(path)["embeddings"]
    else:
        x = np.stack(parquet.read_table(path)["embedding"].to_numpy()).astype(np.float32)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.asarray(e.descriptors, np.float32))


def test_a_pickle_in_an_array_is_never_run(folder):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    broken(folder, "writers", np.array([Trap()] * 3, object))
    with pytest.raises(UserError, match="plain values"):
        load_embeddings(folder)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("meta.json", "{", "not JSON"),
        ("meta.json", "[]", "expected a JSON object"),
        ("meta.json", '{"format": 99}', "format 99, this version reads 1"),
        ("manifest.csv", "path,writer\n", "no column page"),
        ("manifest.csv", "path,writer,page\n", "manifest.csv has 0 rows"),
        ("manifest.csv", "path,writer,page\na,b\n", "row 1 has 2 cells, the header 3"),
        ("manifest.csv", "", "no column page, path, writer"),
        (
            "manifest.csv",
            "path,writer,page,x0,y0,x1,y1\n" + 3 * "a.png,x,1,0,0,4.5,9\n",
            "row 1: x0, y0, x1, y1 must be whole numbers",
        ),
        ("writers.npy", "text", "not a readable"),
    ],
)
def test_damaged_files(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_embeddings(folder)


@pytest.mark.parametrize("file", ["embeddings.npy", "page_ids.npy", "manifest.csv"])
def test_missing_files(folder, file):
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        load_embeddings(folder)


def test_saving_refuses_what_loading_would(tmp_path):
    pages = pages_of(1, 2)
    x = np.eye(2, dtype=np.float32)
    for bad, rows, message in (
        (x * np.nan, pages, "NaN or infinity"),
        (x[:1], pages, "for 2 pages"),
        (x, [pages[0]] * 2, "listed twice"),
        (x[:0], [], "no embeddings"),
    ):
        with pytest.raises(UserError, match=message):
            save_embeddings(tmp_path / "e", bad, rows, tmp_path, {})
    assert not (tmp_path / "e").exists()


def test_nan_is_detected_in_every_block(tmp_path, monkeypatch):
    from saghog_jax.retrieval import embeddings

    monkeypatch.setattr(embeddings, "_CHECKED_VALUES", 32)
    x = np.ones((9, 16), np.float32)
    x[7, 3] = np.inf
    with pytest.raises(UserError, match=r"'w00/p7\.png' \(row 7\)"):
        save_embeddings(tmp_path / "e", x, pages_of(1, 9), tmp_path, {})


def test_only_one_model_is_compared(tmp_path):
    a = planted(tmp_path / "a", pages_of(2, 2))
    check_comparable(a, planted(tmp_path / "b", pages_of(2, 2)))
    check_comparable(a, planted(tmp_path / "c", pages_of(2, 2), checkpoint=""))
    with pytest.raises(UserError, match=r"embedded with checkpoint abc, .* with xyz"):
        check_comparable(a, planted(tmp_path / "d", pages_of(2, 2), checkpoint="xyz"))
    with pytest.raises(UserError, match=r"of width 16, .* of width 8"):
        check_comparable(a, planted(tmp_path / "f", pages_of(2, 2), dim=8))
    # Folders without a recipe are compared by width and checkpoint only.
    with_recipe, scaled = (
        planted(tmp_path / name, pages_of(2, 2), recipe=RECIPE | {"scales": scales}, digests={})
        for name, scales in (("h", [1.0]), ("g", [1.0, 0.5]))
    )
    check_comparable(a, scaled)
    with pytest.raises(
        UserError, match=r"/h and .*/g were embedded .* scales \[1.0\] and \[1.0, 0.5\]"
    ):
        check_comparable(with_recipe, scaled)
