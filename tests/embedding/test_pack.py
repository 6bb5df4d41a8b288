"""Packed models: what describes pages, in few small files, wherever a run folder is read."""

import json
import shutil

import jax
import numpy as np
import pytest
from toy import SMALL, make_small, toy

import saghog_jax as sj
from saghog_jax.configs import convert, embed, finetune, retrieve
from saghog_jax.embedding import compact
from saghog_jax.embedding.describers import Checkpoint
from saghog_jax.input_pipeline.datasets.synthetic import Corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.weights import packed

TINY = Corpus(train_writers=4, test_writers=2, pages=2, width=400, height=240, lines=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of the recipe `small`, its packed form in `model`, and embeddings by both."""
    folder = tmp_path_factory.mktemp("pack")
    make_small(folder, TINY)
    made = convert.get_config("packed")
    made.checkpoint = str(folder / "finetune")
    sj.run_stage(made, folder / "model")
    for name, model in (("embed", "finetune"), ("embed-packed", "model")):
        changes = {"checkpoint": str(folder / model)}
        sj.run_stage(toy(embed.get_config("plain"), folder, **changes), folder / name)
    return folder


def cosines(a, b):
    return (np.asarray(a, np.float64) * np.asarray(b, np.float64)).sum(1)


def test_descriptors_are_those_of_the_run_folder_but_for_rounding(folder):
    """float16 weights (11 bits) and 8-bit components: cosines of .999."""
    a, b = (sj.load_embeddings(folder / name) for name in ("embed", "embed-packed"))
    assert a.descriptors.shape == b.descriptors.shape
    assert cosines(a.descriptors, b.descriptors).min() > 0.999
    assert a.meta["recipe"]["parts"] == b.meta["recipe"]["parts"]
    assert a.meta["checkpoint"] != b.meta["checkpoint"]


def test_variables_are_rounded_to_float16(folder):
    run = Checkpoint(folder / "finetune")._variables
    model, kind = packed.load_model(folder / "model")
    assert kind == "writer"
    expected = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), run)
    jax.tree.map(np.testing.assert_array_equal, model, expected)
    for name in ("patch", "keypoint"):
        words = np.load(folder / f"finetune/sift_words_{name}.npy")
        np.testing.assert_array_equal(packed.load_words(folder / "model", name), words)


def test_components_are_rounded_to_8_bits(folder):
    long, short = (
        compact.load(folder / "finetune/projection_last.npz"),
        compact.load_packed(folder / "model"),
    )
    assert long.parts.keys() == short.parts.keys()
    for name, part in long.parts.items():
        other = short.parts[name]
        components = part.components.astype(np.float32)
        largest = np.abs(components).max(axis=1, keepdims=True)
        # Half a step of 8 bits, and the rounding of float16.
        allowed = largest / 127 / 2 + largest / 2048
        assert (np.abs(other.components.astype(np.float32) - components) <= allowed).all()
        np.testing.assert_array_equal(other.mean, part.mean)
        np.testing.assert_array_equal(other.variances, part.variances)
        assert (other.eps, other.pages) == (part.eps, part.pages)


@pytest.mark.parametrize("rows", [np.zeros((2, 3)), [[1, -2, 0.3]], [[1e-30, 0, 0], [5, 5, 5]]])
def test_bytes_and_factors(rows):
    rows = np.array(rows, np.float32)
    whole, factors = packed.to_bytes(rows)
    assert whole.dtype == np.int8
    again = packed.from_bytes(whole, factors)
    assert (np.abs(again - rows) <= np.abs(rows).max(1, keepdims=True) / 254 * 1.001).all()


def test_no_place_on_a_disk_is_passed_on(folder):
    names = sorted(path.name for path in (folder / "model").iterdir())
    assert names == sorted(
        ["config.json", "digests.json", "model.safetensors", "projection.safetensors",
         "recipe.json"]
    )  # fmt: skip
    for name in names:
        assert str(folder).encode() not in (folder / "model" / name).read_bytes()
    config = json.loads((folder / "model/config.json").read_text())
    assert config["checkpoint"] == config["data"]["pages"] == config["store"]["root"] == ""
    assert config["model"] == json.loads((folder / "finetune/config.json").read_text())["model"]


def test_a_finetuning_starts_from_it(folder):
    made = toy(finetune.get_config("small"), folder, **SMALL)
    made.checkpoint, made.netrvlad.init = str(folder / "model"), "checkpoint"
    sj.run_stage(made, folder / "again")
    assert Checkpoint(folder / "again").recipe().compact


def test_evidence_reads_it(folder):
    made = toy(retrieve.get_config(), folder, embeddings=str(folder / "embed-packed"))
    made.report.evidence.queries = 1
    result = sj.run_stage(made, folder / "retrieve")
    assert list((result.workdir / "evidence").iterdir())


def test_a_model_in_the_box_has_a_name(folder, monkeypatch):
    monkeypatch.setattr(packed, "ASSETS", folder)
    monkeypatch.chdir(folder / "pages")
    made = toy(embed.get_config("plain"), folder, checkpoint="model")
    sj.run_stage(made, folder / "embed-named")
    named, given = (sj.load_embeddings(folder / f"embed-{n}") for n in ("named", "packed"))
    assert named.meta["checkpoint_folder"] == "model"
    np.testing.assert_array_equal(named.descriptors, given.descriptors)
    # By its name, and by the name that the embeddings record.
    for place in ("model", folder / "embed-named"):
        encoder = sj.load_encoder(place)
        x = encoder.embed([given.image(0)])
        assert cosines(x, np.asarray(given.descriptors[:1], np.float32)).min() > 0.999


def test_damage_is_noticed(folder, tmp_path):
    for name, message in (
        ("model.safetensors", "model.safetensors is damaged"),
        ("projection.safetensors", "projection.safetensors is damaged"),
        ("digests.json", "is no whole packed model"),
    ):
        copy = tmp_path / name
        shutil.copytree(folder / "model", copy)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + b"?" if name != "digests.json" else b"{")
        with pytest.raises(UserError, match=message):
            sj.load_encoder(copy)
    with pytest.raises(UserError, match="has one checkpoint; take the last one"):
        sj.load_encoder(folder / "model", which="best")


def test_what_cannot_be_packed(folder):
    made = convert.get_config("packed")
    for checkpoint, target, message in (
        ("pretrain", "other", "is no finetuned model"),
        ("finetune", "model", "holds files already"),
    ):
        made.checkpoint = str(folder / checkpoint)
        with pytest.raises(UserError, match=message):
            sj.run_stage(made, folder / target)
