"""The comparison on real handwriting, on a toy of its data: splits, fragments, rows."""

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy import SIZES

from benchmarks import quality, quality_data
from saghog_jax.configs import embed
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.pages.manifest import BOX, read_csv
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.stages import run_stage

TINY = Corpus(train_writers=8, test_writers=2, pages=2, width=480, height=360, lines=5)
TOY = {**SIZES, "global_batch_size": 16, "patches_per_bag": 2, "scales": [1.0, 0.5],
       # Some fragments of the corpus are nearly blank.
       "data.polarity": "dark_on_light"}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sets in the layout that is read; fragments.csv lists two boxes of each test page."""
    data = tmp_path_factory.mktemp("data")
    for name in quality_data.SETS:
        (data / name).mkdir()
        write_corpus(data / name, TINY, workers=1)
        with (data / name / "manifest.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
        with (data / name / "fragments.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            header = ["path", "writer", "page", "split", "source", "sheet", *BOX]
            writer.writerow(header)
            for row in rows:
                for i, y in enumerate((10, 180)):
                    box = (40, y, 360, y + 160)
                    names = (row["path"], row["writer"], f"{row['page']}_f{i}", "test")
                    writer.writerow([*names, row["path"], f"s{row['page']}", *box])
    return data


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_test_halves_are_never_trained_on(data, tmp_path):
    paths = quality_data.write_manifests(data, tmp_path, "test")
    train, images = table(paths["train"]), table(paths["images"])
    asked = images + table(paths["fragments"])
    assert len(train) == 2 * 16
    assert (len(images), len(asked)) == (2 * 4, 2 * (4 + 8))
    assert not {row["writer"] for row in train} & {row["writer"] for row in asked}
    assert {row["set"] for row in asked} == {p.set for p in quality.PROTOCOLS}
    # Writers of the sets are different people, whatever they are called.
    assert len({row["writer"] for row in train}) == 16
    for page in read_csv(paths["fragments"]).pages:
        assert (tmp_path / page.path).exists()


def test_validation_takes_writers_out_of_the_training_half(data, tmp_path):
    given = quality_data.write_manifests(data, tmp_path / "a", "test")
    paths = quality_data.write_manifests(data, tmp_path / "b", "validation")
    train, asked = ({row["writer"] for row in table(paths[p])} for p in ("train", "images"))
    assert train
    assert asked
    assert not train & asked
    assert train | asked == {row["writer"] for row in table(given["train"])}


def test_licences_and_images_without_a_writer(data, tmp_path):
    """Other licences are left out; images without a writer are only trained on."""
    for name in quality_data.SETS:
        (tmp_path / name).symlink_to(data / name)
    more = tmp_path / "more"
    more.mkdir()
    rows = [{**row, "licence": "CC BY 4.0"} for row in table(data / "copiste_fr/manifest.csv")]
    rows = [row for row in rows if row["split"] == "train"]
    rows[0]["licence"] = "CC BY-SA 4.0"
    rows[1]["writer"] = rows[2]["writer"] = ""
    for row in rows:
        row["path"] = f"../copiste_fr/{row['path']}"
    with (more / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    sets = {**quality_data.SETS, "more": 1.0}
    train, asked = [], []
    for evaluated in ("test", "validation"):
        paths = quality_data.write_manifests(tmp_path, tmp_path / evaluated, evaluated, sets)
        train.append([row for row in table(paths["train"]) if row["set"] == "more"])
        asked.append([row for row in table(paths["images"]) if row["set"] == "more"])
    assert (len(train[0]), len(asked[0])) == (15, 0)
    assert len(train[1]) + len(asked[1]) == 15
    for rows in train:
        assert sum(row["writer"] == "" for row in rows) == 2
    assert all(row["writer"].startswith("more/") for row in asked[1])


def test_fragments_are_separate_boxes_with_ink(data, tmp_path):
    paths = quality_data.write_manifests(data, tmp_path, "test")
    boxes = {}
    for row in table(paths["fit-fragments"]):
        boxes.setdefault(row["path"], []).append([int(row[name]) for name in BOX])
    assert boxes
    for path, found in boxes.items():
        grey = cv2.imread(str(tmp_path / path), cv2.IMREAD_GRAYSCALE)
        _, ink = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
        assert len(found) <= 3
        for i, (x0, y0, x1, y1) in enumerate(found):
            assert (x1 - x0, y1 - y0) == (320, 160)
            assert 0.04 < ink[y0:y1, x0:x1].mean() < 0.5
            for a0, b0, a1, b1 in found[:i]:
                assert x0 >= a1 or a0 >= x1 or y0 >= b1 or b0 >= y1


def test_vlad_by_loops():
    rng = np.random.default_rng(0)
    descriptors = rng.integers(0, 255, (20, 128)).astype(np.uint8)
    x = descriptors / descriptors.sum(1, keepdims=True)
    x = np.sqrt(x)
    words = rng.dirichlet(np.ones(128), 5).astype(np.float32) ** 0.5
    expected = np.zeros((5, 128))
    for row in x:
        word = np.linalg.norm(row - words, axis=1).argmin()
        expected[word] += row - words[word]
    np.testing.assert_allclose(sift_vlad.vlad(descriptors, words), expected.ravel(), atol=1e-5)
    assert not sift_vlad.vlad(descriptors[:0], words).any()


@pytest.mark.slow
def test_rows_from_images_to_figures(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "WORDS", 8)
    rows = ["sift_vlad", "random", "pretrained", "cluster", "page", "linked", "writer",
            "scratch", "foreground", "pixel", "rgb", "sift_keypoint", "recipe",
            "recipe_writer"]  # fmt: skip
    changes = [f"{key}={json.dumps(value)}" for key, value in TOY.items()]
    argv = ["quality", str(data), "--folder", str(tmp_path), "--whitening", "--rows", *rows]
    monkeypatch.setattr(sys, "argv", [*argv, "--set", *changes])
    quality.main()
    capsys.readouterr()
    found = json.loads((tmp_path / "quality.json").read_text())["figures"]
    assert len(found) == len(rows) * 3 * len(quality.PROTOCOLS)
    by = {(f["row"], f["protocol"]): f for f in found}
    for name in rows[1:]:
        gain = by[name, "hist_mss fragments, same source left out"]["minus_sift_vlad"]
        other = by["sift_vlad", "hist_mss fragments, same source left out"]["map"]
        mine = by[name, "hist_mss fragments, same source left out"]["map"]
        assert gain[0] == pytest.approx(mine - other)
    assert "minus_recipe" in by["recipe_writer", "hist_mss images"]
    assert "minus_recipe" not in by["linked", "hist_mss images"]
    # Each row is a model of its own.
    models = list((tmp_path / "fragments").glob("*/embeddings.npy"))
    assert len(models) == 2 + 8
    assert len({path.read_bytes() for path in models}) == len(models)
    assert by["page", "hist_mss images"]["patches"] == 2 * 4 * 16
    assert by["scratch", "hist_mss images"]["patches"] == 4 * 16
    assert len((tmp_path / "quality.md").read_text().splitlines()) == 2 + len(rows) * 3
    # The row of the recipe is what the recipe's config embeds.
    bench = quality.Bench(data, tmp_path, "test", TOY, quality_data.SETS)
    recipe = next(row for row in quality.ROWS if row.name == "recipe")
    _, expected, _ = bench.row(recipe, "images")
    config = embed.get_config("small")
    config.scales, config.precision = tuple(TOY["scales"]), TOY["precision"]
    config.data.pages, config.data.split = str(tmp_path / "images.csv"), ""
    config.data.polarity = TOY["data.polarity"]
    config.store.root = str(tmp_path / "prepare")
    config.store.max_patches_per_page = quality.PATCHES_A_PAGE
    config.checkpoint = str(tmp_path / "finetune")
    run_stage(config, tmp_path / "embed")
    found = np.asarray(load_embeddings(tmp_path / "embed").descriptors)
    # Cosines: the square root makes much of the rounding of sums that nearly vanish.
    np.testing.assert_allclose((found * expected).sum(1), 1, atol=1e-4)
    assert np.abs(found[:, :128] - expected[:, :128]).max() < 1e-6
    # What is there is not made again.
    times = Path(tmp_path / "times.json").read_text()
    assert set(json.loads(times)) >= {"pretrain", "pretrain-target=pixel", "images/sift_vlad"}


def test_rows_name_what_they_are():
    names = [row.name for row in quality.ROWS]
    assert len(set(names)) == len(names)
    assert set(quality.DEFAULT) <= set(names)


def test_a_cell_shows_the_interval_of_the_difference():
    found = {"map": 0.5, "top1": 0.25, "minus_sift_vlad": (0.1, -0.02, 0.2)}
    assert quality._cell(found) == ".500 / .250 (-0.020 to +0.200)"
