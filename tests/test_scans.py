"""From a folder of scans to a report in one go."""

import csv
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from toy import toy

from saghog_jax import scans
from saghog_jax.configs import finetune, pretrain
from saghog_jax.configs import scans as scans_config
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.store import strokes
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.stages import run_stage

TINY = Corpus(train_writers=4, test_writers=2, pages=2, width=320, height=160, lines=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages of writers, a model, and the images alone as a user has them."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    run_stage(toy(pretrain.get_config(), folder), folder / "pretrain")
    run_stage(toy(finetune.get_config(), folder, labels="page"), folder / "finetune")
    (folder / "images").mkdir()
    for page in load_manifest(config(folder, pages="pages").data).pages[:4]:
        shutil.copy(folder / "pages" / page.path, folder / "images")
    return folder


def config(folder, pages="images", **fields):
    made = scans_config.get_config()
    made.data.pages, made.checkpoint, made.workers = (
        str(folder / pages),
        str(folder / "finetune"),
        1,
    )
    made.report.evidence.queries = 0
    made.update_from_flattened_dict(fields)
    return made


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def run(folder, workdir, pages="images", **fields):
    return scans.run(config(folder, pages, **fields), folder / workdir)


def test_images_become_a_report_and_new_ones_are_added(folder, capsys):
    result = run(folder, "a")
    assert result.paths["report"] == folder / "a/report.html"
    assert "<html" in result.paths["report"].read_text()
    assert result.counts == {"pages": 4}
    assert len(rows_of(folder / "a/ranking.csv")) == 4 * 3
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"report: {folder / 'a/report.html'}"
    factor = json.loads((folder / "a/scans.json").read_text())["scale"]
    assert f"pages are resized by {factor:g}" in out
    assert load_embeddings(folder / "a/embed").meta["regions"]["backend"] == "ink"
    # A further page: the factor stays, and the known pages are not described again.
    more = folder / "more"
    shutil.copytree(folder / "images", more)
    page = load_manifest(config(folder, pages="pages").data).pages[5]
    shutil.copy(folder / "pages" / page.path, more / "new.png")
    before = np.asarray(load_embeddings(folder / "a/embed").descriptors)
    run(folder, "a", pages="more")
    out = capsys.readouterr().out
    assert f"pages are resized by {factor:g}, as those of {folder / 'a'}" in out
    assert "4 are finished already" in out
    after = load_embeddings(folder / "a/embed")
    rows = np.flatnonzero(after.page_ids != "new.png")
    np.testing.assert_array_equal(np.asarray(after.descriptors)[rows], before)


def test_new_pages_are_searched_in_an_earlier_collection(folder, capsys):
    run(folder, "b", scale=1.5)
    capsys.readouterr()
    found = run(folder, "c", pages="images", gallery=str(folder / "b"), checkpoint=None, top_k=2)
    out = capsys.readouterr().out
    assert f"pages are resized by 1.5, as those of {folder / 'b'}" in out
    rows = rows_of(folder / "c/matches.csv")
    assert len(rows) == 4 * 2
    assert found.paths["report"] == folder / "c/report.html"


def test_fields_are_obeyed(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(scans.webbrowser, "open", opened.append)
    result = run(folder, "d", scale=2.0, top_k=1, open=True)
    assert opened == [result.paths["report"].as_uri()]
    assert len(rows_of(folder / "d/ranking.csv")) == 4
    assert json.loads((folder / "d/scans.json").read_text()) == {"scale": 2.0}
    meta = load_embeddings(folder / "d/embed").meta
    assert meta["recipe"]["rule"]["scale"] == 2.0
    whole = scans_config.get_config("regions=none")
    assert whole.regions.backend == "none"


def test_mistakes(folder, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(next((folder / "images").iterdir()), tmp_path / "one")
    for fields, message in (
        ({"data.pages": str(tmp_path / "one")}, "has one page; pages are compared with each other"),
        ({"scale": -1.0}, "config.scale=-1 must be 0 or a factor above 0"),
        ({"gallery": str(tmp_path)}, "is no work folder of `scans`: scans.json is missing"),
        ({"checkpoint": str(tmp_path)}, "no checkpoint in"),
    ):
        with pytest.raises(UserError, match=message):
            run(folder, "e", **fields)


def test_the_command_writes_beside_the_folder(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "mine")
    words = ["scans", "mine/", f"checkpoint={folder / 'finetune'}", "report.evidence.queries=0"]
    done = subprocess.run(
        [sys.executable, "-m", "saghog_jax", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'mine-saghog/report.html'}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-saghog"]


def test_the_median_stroke_of_a_folder(tmp_path):
    """Of pages with thin and with thick strokes, and of one without writing."""
    rng = np.random.default_rng(0)
    for name, width in (("a", 2), ("b", 4), ("c", 4), ("d", 8)):
        image = np.full((300, 300), 255, np.uint8)
        for _ in range(60):
            start = rng.integers(20, 280, 2)
            end = start + rng.integers(-40, 41, 2)
            cv2.line(image, start.tolist(), end.tolist(), 0, width)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    Image.new("L", (300, 300), 255).save(tmp_path / "e.png")
    made = scans_config.get_config()
    made.data.pages = str(tmp_path)
    manifest = load_manifest(made.data)
    assert 3.5 < strokes.median_stroke(manifest, 10**8, 5, 1) < 5.5
    # Of the first and the last page, the last without writing.
    assert 1.5 < strokes.median_stroke(manifest, 10**8, 2, 1) < 3
    # An image that is too large is no page.
    assert strokes.median_stroke(manifest, 10, 5, 1) == 0


@pytest.mark.parametrize(
    ("width", "scale", "expected"),
    [(0, 1, 1), (4.5, 1, 1), (7, 1.5, 1.5), (2.2, 1, 2.75), (3.2, 1, 2), (12, 1, 0.5), (3, 2, 4),
     (100, 1, 0.25)],
)  # fmt: skip
def test_the_factor_that_suits_a_width(width, scale, expected):
    assert strokes.best_scale(width, scale) == expected
