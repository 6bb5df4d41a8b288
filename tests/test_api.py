"""The Python API: five lines of a notebook, on folders of the recipe `small`."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from toy import SMALL, make_small, toy

import saghog_jax as sj
from saghog_jax.configs import embed, finetune, retrieve
from saghog_jax.embedding import compact
from saghog_jax.input_pipeline.datasets.synthetic import Corpus
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.stages import STAGES

TINY = Corpus(train_writers=4, test_writers=2, pages=2, width=320, height=160, lines=2)
LARGER = {"store.scale": 1.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages, a model of the recipe `small` for pages enlarged 1.25 times, and embeddings."""
    folder = tmp_path_factory.mktemp("api")
    make_small(folder, TINY, **LARGER)
    sj.run_stage(toy(embed.get_config("plain"), folder), folder / "embed")
    return folder


@pytest.fixture(scope="module")
def images(folder):
    gallery = sj.load_embeddings(folder / "embed")
    return [gallery.image(row) for row in range(len(gallery))]


def test_the_lines_of_the_readme(folder, images):
    """They run after all stages are imported, and write no file."""
    readme = (ROOT / "README.md").read_text()
    lines = re.search(r"```python\n(import saghog_jax as sj\n.*?)```", readme, re.DOTALL)[1]
    for example, path in (
        ("runs/scans/finetune", folder / "finetune"),
        ("runs/scans/embed", folder / "embed"),
        ("a.jpg", images[1]),
        ("b.jpg", images[3]),
    ):
        assert lines.count(f'"{example}"') == 1
        lines = lines.replace(f'"{example}"', repr(str(path)))
    lines = lines.replace("k=5", "k=3")
    script = f"""
import importlib
for stage in {STAGES}:
    importlib.import_module(f"saghog_jax.{{stage}}")
{lines}
assert rows[:, 0].tolist() == [1, 3], rows
assert similarity[:, 0].min() > 1 - 1e-3, similarity
assert rows.shape == similarity.shape == (2, 3)
"""
    before = sorted(folder.rglob("*"))
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=300)
    assert sorted(folder.rglob("*")) == before


def test_importing_the_package_loads_no_jax():
    code = "import sys, saghog_jax; dir(saghog_jax); assert not {'jax', 'cv2'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    for name in sj.__all__:
        assert callable(getattr(sj, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sj.nothing


def test_the_stage_embed_and_the_api_make_the_same_descriptors(folder, images):
    gallery = sj.load_embeddings(folder / "embed")
    assert gallery.meta["recipe"]["rule"]["scale"] == 1.25
    assert gallery.meta["recipe"]["scales"] == [1.0, 0.5, 1.4]
    for where in ("finetune", "embed"):
        x = sj.load_encoder(folder / where).embed(images[:2])
        assert x.dtype == np.float32
        # Batches of other pages: the last bits of sums of 1,000 patches differ. After two steps of
        # training all pages are nearly the same to the model, so whitening amplifies these bits.
        np.testing.assert_allclose(x, gallery.descriptors[:2], atol=0.04)
        assert (x * gallery.descriptors[:2]).sum(1).min() > 1 - 1e-3


def test_paths_pil_images_and_arrays_are_one_page(folder, images):
    encoder = sj.load_encoder(folder / "finetune")
    with Image.open(images[0]) as image:
        forms = [images[0], str(images[0]), image, np.asarray(image.convert("RGB"))]
        x = encoder.embed(forms)
    np.testing.assert_allclose(x, x[[0] * 4], atol=1e-5)
    cuts = encoder.patches(images[0])
    assert len(cuts) == 3
    assert cuts[0].patches.shape[1:] == (32, 32, 3)
    with pytest.raises(PageError, match=r"image 1: a page must be uint8 .*, got float64 \[4, 4\]"):
        encoder.embed([images[0], np.zeros((4, 4))])
    with pytest.raises(PageError, match="nowhere.png: cannot read the file: No such file"):
        encoder.embed(["nowhere.png"])
    with pytest.raises(PageError, match="image 0: no writing: 0 pixels lie in strokes"):
        encoder.embed([np.full((200, 200), 255, np.uint8)])
    assert encoder.embed([]).shape == (0, x.shape[1])


def test_nearest_refuses_descriptors_of_another_recipe(folder, images, tmp_path):
    gallery = sj.load_embeddings(folder / "embed")
    x = sj.load_encoder(folder / "finetune").embed(images[:2])
    config = toy(embed.get_config("plain"), folder, **{"sift.keypoint": 0.1})
    sj.run_stage(config, tmp_path / "weights")
    other = sj.load_embeddings(tmp_path / "weights")
    for queries in (x, x[:1], gallery):
        with pytest.raises(UserError, match="weight in the similarity of .*Embed both alike"):
            sj.nearest(queries, other)
        rows, _ = sj.nearest(queries, other, k=1, force=True)
        assert rows[0, 0] == 0
    with pytest.raises(UserError, match=r"queries are \[2, 7\]"):
        sj.nearest(np.zeros((2, 7), np.float32), gallery)
    # A plain array tells nothing; it is taken as it is.
    rows, _ = sj.nearest(np.array(x), other, k=1)
    assert rows.shape == (2, 1)


def test_the_command_line_overrides_the_recipe_and_meta_records_it(folder, tmp_path):
    changes = {"scales": (1.0,), "sift.keypoint": 0.0, "store.max_patches_per_page": 20}
    sj.run_stage(toy(embed.get_config("plain"), folder, **changes), tmp_path)
    recipe = sj.load_embeddings(tmp_path).meta["recipe"]
    assert recipe["scales"] == [1.0]
    assert recipe["rule"]["max_patches_per_page"] == 20
    assert [part["descriptor"] for part in recipe["parts"]] == ["netrvlad", "sift_patch"]
    # What is not given is the recipe's of the run.
    assert (recipe["rule"]["scale"], recipe["rule"]["keypoint_on_ink"]) == (1.25, False)


def test_evaluate_gives_the_metrics_of_retrieval(folder):
    figures = sj.evaluate(folder / "embed")
    assert 0 < figures["map"] <= 1
    assert figures == sj.evaluate(sj.load_embeddings(folder / "embed"))


def test_explain_divides_the_similarity_among_the_patches(folder, images):
    gallery = sj.load_embeddings(folder / "embed")
    encoder = sj.load_encoder(folder / "embed")
    evidence = sj.explain(encoder, images[0], images[1], gallery)
    similarity = float(np.asarray(gallery.descriptors[0]) @ gallery.descriptors[1])
    # 21 numbers stored as float16.
    assert evidence.similarity == pytest.approx(similarity, abs=1e-3)
    for side in (evidence.query, evidence.match):
        total = float(side.contributions.sum())
        assert total == pytest.approx(evidence.similarity - side.mean, abs=1e-4)
    assert len(evidence.pairs) == len(evidence.alike) <= 6
    alone = sj.explain(encoder, images[0], images[1])
    assert alone.query.mean == 0
    assert float(alone.query.contributions.sum()) == pytest.approx(similarity, abs=1e-3)


def test_explain_follows_the_weights_of_pages_with_much_writing(folder, images, monkeypatch):
    encoder = sj.load_encoder(folder / "finetune")
    assert encoder.recipe.full
    pages = [encoder.embed(images[:2])]
    # These pages have little writing; with these bounds they have neither little nor much.
    monkeypatch.setattr("saghog_jax.embedding.recipe._LITTLE", 1.0)
    monkeypatch.setattr("saghog_jax.embedding.recipe._MUCH", 1000.0)
    pages.append(encoder.embed(images[:2]))
    assert np.abs(np.asarray(pages[0]) - np.asarray(pages[1])).max() > 0.01
    evidence = sj.explain(encoder, images[0], images[1])
    similarity = float(np.asarray(pages[1])[0] @ np.asarray(pages[1])[1])
    for side in (evidence.query, evidence.match):
        assert float(side.contributions.sum()) == pytest.approx(similarity, abs=1e-3)


def test_a_stage_returns_what_it_did(folder, tmp_path):
    result = sj.run_stage(toy(embed.get_config("plain"), folder), folder / "embed")
    assert result.paths == {"finetuned": folder / "embed"}
    assert result.counts == {"pages": 4}
    assert result.skipped == ()
    assert [following.stage for following in result.following] == ["retrieve"]
    config = toy(embed.get_config("plain"), folder)
    config.unlock().stage = "nothing"
    with pytest.raises(UserError, match="unknown stage 'nothing', known: prepare"):
        sj.run_stage(config, tmp_path)


def test_descriptors_of_the_recipe_are_compact(folder, images):
    short = sj.load_embeddings(folder / "embed")
    recipe = short.meta["recipe"]
    assert short.descriptors.dtype == np.float16
    assert short.descriptors.shape[1] == 3 * recipe["compact"] > 0
    assert "projection" in short.meta["digests"]
    config = toy(embed.get_config("plain"), folder)
    config.compact = 0
    sj.run_stage(config, folder / "long")
    long = sj.load_embeddings(folder / "long")
    assert long.descriptors.dtype == np.float32
    assert long.descriptors.shape[1] > 1000
    with pytest.raises(UserError, match="numbers of each part"):
        sj.nearest(long, short)
    config.compact = 2
    sj.run_stage(config, folder / "two")
    two = np.asarray(sj.load_embeddings(folder / "two").descriptors, np.float32)
    assert two.shape[1] == 6
    # The first components of each part, of unit length again.
    first = np.asarray(short.descriptors, np.float32).reshape(len(two), 3, -1)[:, :, :2]
    first /= np.linalg.norm(first, axis=2, keepdims=True)
    apart = first.reshape(len(two), 3, 2) - two.reshape(len(two), 3, 2) / np.linalg.norm(
        two.reshape(len(two), 3, 2), axis=2, keepdims=True
    )
    assert np.abs(apart).max() < 5e-3
    again = sj.load_encoder(folder / "long").embed(images[:1])
    np.testing.assert_allclose(again[0] @ long.descriptors[0], 1, atol=1e-4)


def test_other_descriptors_than_the_fitted_ones_are_long(folder, tmp_path, caplog):
    config = toy(embed.get_config("plain"), folder, power=0.5)
    sj.run_stage(config, tmp_path / "power")
    assert "note: long descriptors: the compact ones were fitted with another power" in caplog.text
    assert sj.load_embeddings(tmp_path / "power").meta["recipe"].get("compact", 0) == 0
    config.compact = 3
    with pytest.raises(UserError, match="config.compact=3: .* another power; give 0"):
        sj.run_stage(config, tmp_path / "error")


def test_the_projection_is_fitted_once_and_belongs_to_its_weights(folder, tmp_path):
    path = folder / "finetune" / "projection_last.npz"
    before = path.stat().st_mtime_ns
    config = toy(finetune.get_config("small"), folder, **SMALL, **LARGER)
    sj.run_stage(config, folder / "finetune")
    assert path.stat().st_mtime_ns == before
    content = path.read_bytes()
    projection = compact.load(path)
    compact.save(compact.Projection(projection.parts, dict.fromkeys(projection.digests, "0")), path)
    with pytest.raises(UserError, match="was not fitted for netrvlad of this checkpoint"):
        sj.load_encoder(folder / "finetune")
    # The finetuning command fits it anew, to the same pages.
    sj.run_stage(config, folder / "finetune")
    assert compact.load(path).digest == projection.digest
    path.write_bytes(content)


def test_compact_descriptors_are_explained(folder):
    config = toy(retrieve.get_config(), folder, bootstrap=0, **{"report.evidence.queries": 2})
    sj.run_stage(config, folder / "retrieve")
    matches = list((folder / "retrieve" / "evidence").glob("*.npz"))
    assert matches
    for path in matches:
        with np.load(path, allow_pickle=False) as match:
            for side in ("query", "match"):
                said = match["similarity"] - match[f"{side}_mean"]
                # Descriptors are stored as float16.
                np.testing.assert_allclose(match[f"{side}_contributions"].sum(), said, atol=2e-3)
