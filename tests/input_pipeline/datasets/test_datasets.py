"""Public collections, on tiny fakes of their folders: rows, traps, counts, mistakes, manifests."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from collection_fakes import FAKES, fake, rows_of, touch
from messages import message_of

from saghog_jax.configs.common import data_config
from saghog_jax.input_pipeline.datasets import catalog
from saghog_jax.input_pipeline.datasets.catalog import COLLECTIONS
from saghog_jax.input_pipeline.datasets.layout import read_rows
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.input_pipeline.pages.sources import load_manifest

# Rows


def test_every_variant_has_a_fake():
    names = {c.full_name(v) for c in COLLECTIONS.values() for v in c.variants}
    assert names == set(FAKES)


@pytest.mark.parametrize("name", FAKES)
def test_rows_of_the_fake(tmp_path, name):
    fake(tmp_path, name, empty=True)
    rows = rows_of(tmp_path, name)
    assert {row.path for row in rows} <= set(FAKES[name])
    assert len({row.path for row in rows}) == len(rows)
    collection, variant = catalog.find(name)
    assert list(dict.fromkeys(row.split for row in rows)) == collection.splits(variant)
    for row in rows:
        assert (row.writer == "") == (name.startswith(("clamm", "cbad")))
        assert row.page


def test_historical_wi(tmp_path):
    rows = rows_of(fake(tmp_path, "historical_wi/binarized", empty=True), "historical_wi")
    assert rows[0] == ("icdar2017-training-binary/990-IMG_MAX_80.png", "990", "80", "train", {})
    assert rows[-1] == (
        "ScriptNet-HistoricalWI-2017-binarized/1-IMG_MAX_10004.jpg",
        "1",
        "10004",
        "test",
        {},
    )
    assert [row.writer for row in rows] == ["990"] * 3 + ["1008"] * 3 + ["1"] * 5


def test_hisfrag20_keeps_writers_of_both_splits_and_tells_pages_apart(tmp_path):
    rows = rows_of(fake(tmp_path, "hisfrag20", empty=True), "hisfrag20")
    assert [(r.split, r.writer, r.page, r.extra["fragment"]) for r in rows] == [
        ("train", "7", "7_1", "0"),
        ("train", "12", "12_1", "0"),
        ("train", "12", "12_1", "1"),
        ("test", "12", "12_3", "0"),
        ("test", "900", "900_1", "9"),
        ("test", "900", "900_1", "10"),
    ]


def test_grk_papyri_takes_the_last_underscore(tmp_path):
    rows = rows_of(fake(tmp_path, "grk_papyri", empty=True), "grk_papyri")
    assert [(r.writer, r.page) for r in rows] == [
        ("Abraamios", "1"),
        ("Abraamios", "12"),
        ("Apa_Rhasios", "1"),
        ("Apa_Rhasios", "2"),
        ("Kyros3", "1"),
    ]


def test_hisir19_reads_the_misspelled_header_and_keeps_single_pages(tmp_path):
    rows = rows_of(fake(tmp_path, "hisir19", empty=True), "hisir19")
    assert [(r.split, r.page, r.writer, r.extra["category"]) for r in rows] == [
        ("validation", "0", "validation-5", ""),
        ("validation", "1", "validation-5", ""),
        ("validation", "2", "validation-9", ""),
        ("validation", "3", "validation-5", ""),
        ("test", "0", "test-5", "letters"),
        ("test", "1", "test-6", "charters"),
        ("test", "2", "test-6", "charters"),
    ]


def test_hisir19_finds_the_table_of_another_name_and_place(tmp_path):
    fake(tmp_path, "hisir19", empty=True)
    (tmp_path / "wi_comp_19val_ground_truth.csv").rename(
        tmp_path / "wi_comp_19_validation/wi_comp19_validation_ground_truth.csv"
    )
    assert len(rows_of(tmp_path, "hisir19", "validation")) == 4


def test_icdar2013_never_joins_writers_of_the_two_splits(tmp_path):
    rows = rows_of(fake(tmp_path, "icdar2013", empty=True), "icdar2013")
    train, test = ({r.writer for r in rows if r.split == s} for s in ("train", "test"))
    assert train == {"train-027", "train-028"}
    assert test == {"test-001", "test-027"}
    assert [r.extra["language"] for r in rows[:4]] == ["English", "English", "Greek", "Greek"]


@pytest.mark.parametrize("variant", ["cropped", "pages"])
def test_cvl_splits_by_writer_and_leaves_blank_pages_out(tmp_path, variant):
    rows = rows_of(fake(tmp_path, f"cvl/{variant}", empty=True), f"cvl/{variant}")
    pages = {}
    for row in rows:
        pages.setdefault((row.split, row.writer), []).append(row.page)
    expected = {
        "cropped": {
            ("train", "0001"): list("1234678"),
            ("test", "0052"): list("12346"),
            ("test", "0431"): list("126"),
        },
        "pages": {("train", "0050"): ["1", "8"], ("test", "0431"): ["1"]},
    }
    assert pages == expected[variant]


def test_clamm_names_scripts_and_dates(tmp_path):
    rows = rows_of(fake(tmp_path / "16", "clamm16", empty=True), "clamm16")
    assert [(r.split, r.extra["script"]) for r in rows] == [
        ("train", "Caroline"),
        ("train", "Half Uncial"),
        ("test_task1", "Uncial"),
        ("test_task2", "Humanistic+Humanistic Cursive"),
        ("test_task2", "Textualis"),
    ]
    assert rows[0].page == "315556101_MS0187_0005_1"
    rows = rows_of(fake(tmp_path / "17", "clamm17", empty=True), "clamm17")
    assert [(r.split, *r.extra.values()) for r in rows] == [
        ("train", "Southern Textualis", "1001-1100"),
        ("test_task1_task3", "Humanistic Cursive", "1476-1500"),
        ("test_task2_task4", "Half Uncial", "1576-1600"),
    ]


def test_cbad2019_takes_the_folders_of_its_archive(tmp_path):
    rows = rows_of(fake(tmp_path, "cbad2019", empty=True), "cbad2019")
    assert [(r.split, r.page) for r in rows] == [
        ("train", "0001 a"),
        ("validation", "0002"),
        ("test", "0003"),
    ]


@pytest.mark.parametrize("place", ["historical_wi", "unpacked", "icdar2017-training-binary"])
def test_folders_are_found_where_programs_unpack_them(tmp_path, place):
    name = "icdar2017-training-binary/7-IMG_MAX_1.png"
    touch(tmp_path / place, [name, "._7-IMG_MAX_1.png", "Thumbs.db"])
    (row,) = rows_of(tmp_path, "historical_wi", "train")
    assert row.path == f"{place}/{name}"


def test_one_split_does_not_need_the_others(tmp_path):
    touch(tmp_path, [f"ScriptNet-HistoricalWI-2017-binarized/1-IMG_MAX_{n}.jpg" for n in (9, 10)])
    assert [r.page for r in rows_of(tmp_path, "historical_wi", "test")] == ["9", "10"]
    assert len(rows_of(tmp_path, "historical_wi")) == 2
    assert "icdar2017-training-binary" in message_of(
        rows_of, tmp_path, "historical_wi", check_counts=True
    )


# Counts


def _whole_historical_wi():
    yield from (f"icdar2017-training-binary/{w}-IMG_MAX_{p}.png" for w in range(394) for p in "123")
    folder = "ScriptNet-HistoricalWI-2017-binarized"
    yield from (f"{folder}/{w}-IMG_MAX_{p}.jpg" for w in range(720) for p in "12345")


def _whole_cvl():
    train = [*range(1, 7), *range(12, 19), *range(20, 30), 41, 42, 47, 50]
    test = [*range(52, 334), 431]
    pages = [(w, p) for w in train for p in "1234678"] + [(w, p) for w in test for p in "12346"]
    return (f"cvl-database-cropped-1-1/{w:04d}-{p}-cropped.tif" for w, p in pages)


def _whole_icdar2013():
    for folder, writers in (
        ("experimental_dataset_2013", range(27, 127)),
        ("icdar2013_benchmarking_dataset", range(1, 251)),
    ):
        yield from (f"{folder}/{w:03d}_{p}.tif" for w in writers for p in "1234")


@pytest.mark.parametrize(
    ("name", "names", "counts"),
    [
        ("historical_wi", _whole_historical_wi, {"train": 1182, "test": 3600}),
        ("cvl", _whole_cvl, {"train": 189, "test": 1413}),
        ("icdar2013", _whole_icdar2013, {"train": 400, "test": 1000}),
    ],
)
def test_whole_collections_pass_and_a_page_less_does_not(tmp_path, name, names, counts):
    names = list(names())
    touch(tmp_path, names)
    rows = rows_of(tmp_path, name, check_counts=True)
    assert {split: sum(r.split == split for r in rows) for split in counts} == counts
    (tmp_path / names[-1]).unlink()
    touch(tmp_path, [f"{Path(names[-1]).parent}/notes.jpg"])
    message = message_of(rows_of, tmp_path, name, "test", check_counts=True)
    total = counts["test"]
    assert f"split test: expected {total:,} images" in message
    assert f"found {total - 1:,} images" in message
    assert "'notes.jpg'" in message
    assert "check_counts=false" in message
    assert len(rows_of(tmp_path, name, "test")) == total - 1


def _small(name, shared, **counts):
    """The collection with other official counts."""
    collection, variant = catalog.find(name)
    parts = tuple(
        replace(part, images=counts[part.split][0], writers=counts[part.split][1], pages=None)
        for part in collection.variants[variant]
    )
    return replace(collection, variants={variant: parts}, shared_writers=shared)


def test_writers_in_both_splits_are_counted(tmp_path):
    fake(tmp_path, "hisfrag20", empty=True)
    counts = {"train": (3, 2), "test": (3, 2)}
    assert len(read_rows(_small("hisfrag20", 1, **counts), "", tmp_path)) == 6
    message = message_of(read_rows, _small("hisfrag20", 0, **counts), "", tmp_path)
    assert "expected 0 writers in more than one split, found 1, such as 12" in message
    wrong = {**counts, "train": (3, 3)}
    message = message_of(read_rows, _small("hisfrag20", 1, **wrong), "", tmp_path)
    assert "split train: expected 3 images, 3 writers, found 3 images, 2 writers" in message


def test_an_image_that_an_archive_lacks_is_excused_others_are_not(tmp_path):
    fake(tmp_path, "clamm17", empty=True)
    counts = {"train": (1, 0), "test_task1_task3": (2, 0), "test_task2_task4": (1, 0)}
    small = _small("clamm17", None, **counts)
    assert len(read_rows(small, "", tmp_path)) == 3
    table = tmp_path / "ICDAR2017_CLaMM_Training/@ICDAR2017_CLaMM_Training.csv"
    table.write_text(table.read_text() + "IRHT_P_000002.tif;1;1\n")
    message = message_of(read_rows, small, "", tmp_path)
    assert "lists 1 images that do not exist, such as 'IRHT_P_000002.tif'" in message
    assert len(read_rows(small, "", tmp_path, check_counts=False)) == 3


# Mistakes


def test_a_page_in_two_formats_is_a_mistake(tmp_path):
    folder = "ScriptNet-HistoricalWI-2017-binarized"
    touch(tmp_path, [f"{folder}/1-IMG_MAX_1.jpg", f"{folder}/1-IMG_MAX_1.png"])
    message = message_of(rows_of, tmp_path, "historical_wi")
    assert "one page twice, as '1-IMG_MAX_1.jpg' and as '1-IMG_MAX_1.png'" in message


def test_a_missing_folder_says_what_to_download(tmp_path):
    for root, state in ((tmp_path, "does not hold icdar2017-"), (tmp_path / "x", "does not exist")):
        for check_counts in (True, False):
            message = message_of(rows_of, root, "historical_wi", check_counts=check_counts)
            assert state in message
            assert "https://zenodo.org/records/1324999" in message
            assert "training-binarized.zip (MD5 3caa11320e857cf80694031a568ce6bf)" in message
            assert "holds icdar2017-training-binary/, ScriptNet-" in message
    touch(tmp_path, ["wi_comp_19_test/0.jpg"])
    message = message_of(rows_of, tmp_path, "hisir19", "test")
    assert "does not hold wi_comp19_test_ground_truth.csv" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NAME,ID\n0.jpg,1\n", "no column has a name like 'FILENAME|FILENEMA', only 'NAME', 'ID'"),
        ("FILENAME,X\n0.jpg,1\n", "no column has a name like 'ID|WRITER.?ID'"),
        ("FILENAME,ID\n0.jpg\n", "line 2: 1 cells, 2 are needed"),
        ("FILENAME,ID\n0.jpg,1\n0.jpg,2\n", "line 3: '0.jpg' is listed twice"),
        ("", "is empty"),
    ],
)
def test_damaged_tables(tmp_path, text, message):
    fake(tmp_path, "hisir19", empty=True)
    (tmp_path / "wi_comp19_test_ground_truth.csv").write_text(text)
    assert message in message_of(rows_of, tmp_path, "hisir19", "test")


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ("tfds:historical", "unknown collection 'historical', known: historical_wi, hisfrag20"),
        ("tfds:historical_vi", "did you mean 'historical_wi'?"),
        ("tfds:historical_wi/colour", "unknown variant of historical_wi 'colour', known: bina"),
        ("tfds:hisfrag20/color", "hisfrag20 has no variants"),
        ("tfds:cvl,manual=/x", "'manual=/x' is not one of manual_dir=FOLDER"),
        ("tfds:cvl,check_counts=no", "'check_counts=no' is not one of"),
    ],
)
def test_names_that_are_not_known(pages, message):
    assert message in message_of(catalog.parse, pages)


def test_names():
    assert list(COLLECTIONS) == [
        *("historical_wi", "hisfrag20", "grk_papyri", "hisir19", "icdar2013", "cvl"),
        *("clamm16", "clamm17", "cbad2019"),
    ]
    for name, collection in COLLECTIONS.items():
        assert collection.name == name
        assert set(collection.archives) == set(collection.variants)
        assert collection.citation.startswith("@")
        assert collection.license
        for variant in collection.variants:
            assert collection.homepage in collection.instructions(variant)


def test_where_files_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    home = Path("~/tensorflow_datasets/downloads/manual").expanduser()
    assert catalog.parse("tfds:cvl")[1:] == ("cropped", home, True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert catalog.parse("tfds:cvl").manual_dir == tmp_path / "downloads/manual"
    request = catalog.parse("tfds:cvl/pages,manual_dir=/a,b,check_counts=False")
    assert request[1:] == ("pages", Path("/a,b"), False)


# The manifest


def _load(pages, split="", **changes):
    data = data_config(split)
    data.pages = pages
    data.update(changes)
    return load_manifest(data)


def test_the_manifest_points_at_the_images_where_they_lie(tmp_path):
    fake(tmp_path, "icdar2013")
    pages = f"tfds:icdar2013,manual_dir={tmp_path},check_counts=false"
    train = _load(pages, "train")
    assert (len(train), train.root, train.columns) == (8, tmp_path, ("language",))
    assert train.writers == ["train-027", "train-028"]
    assert all((train.root / page.path).is_file() for page in train.pages)
    assert len(_load(pages)) == 12
    assert "no split 'val', known: train, test" in message_of(_load, pages, "val")
    assert "are for folders of images" in message_of(_load, pages, writer_regex="(.)")
    train.write(tmp_path / "train.csv")
    assert read_csv(tmp_path / "train.csv") == train


def test_the_manifest_checks_counts(tmp_path):
    fake(tmp_path, "icdar2013", empty=True)
    message = message_of(_load, f"tfds:icdar2013,manual_dir={tmp_path}", "train")
    assert "expected 400 images, 100 writers, found 8 images, 2 writers" in message


BUILD = """
import sys
sys.modules["tensorflow_datasets"] = None
from saghog_jax.configs.common import data_config, store_config
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.errors import UserError
data, store = data_config("test"), store_config("pretrain")
data.pages = f"tfds:grk_papyri,check_counts=false,manual_dir={sys.argv[1]}"
store.root, store.workers = sys.argv[2], 1
try:
    ensure_store(data, store)
except UserError as error:
    assert "no writing: 0 pixels lie in strokes" in str(error), error
assert not {"jax", "tensorflow"} & set(sys.modules)
"""


def test_building_a_store_needs_neither_tfds_nor_jax(tmp_path):
    fake(tmp_path / "manual", "grk_papyri")
    arguments = [str(tmp_path / "manual"), str(tmp_path / "stores")]
    subprocess.run([sys.executable, "-c", BUILD, *arguments], check=True, timeout=120)
