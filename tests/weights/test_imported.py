"""Imported published weights of every kind in finetuning and embedding."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT
from toy import toy

from saghog_jax import finetune
from saghog_jax.configs import convert as convert_config
from saghog_jax.configs import embed as embed_config
from saghog_jax.configs import finetune as finetune_config
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.models.build import make_encoder, make_mae
from saghog_jax.models.targets import target_dim
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.runs.checkpoint import KINDS, load_variables, read_config
from saghog_jax.stages import run_stage

SMALL = np.load(ROOT / "tests" / "golden" / "mae_small.npz")
HEADS = np.load(ROOT / "tests" / "golden" / "netrvlad.npz")
TINY = Corpus(train_writers=4, test_writers=2, pages=2, width=360, height=200, lines=3)
HEADS_OF = {"writer": "wrap", "embedded": "wrap20"}
SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)[None, None]


def part(file, prefix):
    return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def weights(name):
    """The arrays of a published model, and how many heads it has."""
    if name in HEADS_OF:
        return part(HEADS, f"{HEADS_OF[name]}_w/"), 4
    small = part(SMALL, "w/") | {
        "target_generator.weight_x": SOBEL,
        "target_generator.weight_y": SOBEL.swapaxes(2, 3),
    }
    if name == "encoder":
        small = {k: v for k, v in small.items() if not k.startswith(("decoder", "mask", "target"))}
    return small, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages, the run folder `mae` made by the command as users give it, and `encoder`, `writer`
    and `embedded` made by its stage, without a new interpreter for each.
    """
    folder = tmp_path_factory.mktemp("imported")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    for name in ("mae", "encoder", *HEADS_OF):
        arrays, heads = weights(name)
        np.savez(folder / f"{name}.npz", **arrays)
        config = convert_config.get_config()
        config.checkpoint, config.heads, config.decoder_heads = (
            str(folder / f"{name}.npz"),
            heads,
            4,
        )
        if name != "mae":
            assert len(run_stage(config, folder / name).skipped) == 0
    command = [sys.executable, "-m", "saghog_jax.main", f"--config={ROOT}/configs/convert.py",
               f"--config.checkpoint={folder}/mae.npz", "--config.heads=8",
               "--config.decoder_heads=4",
               f"--workdir={folder}/mae"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return folder


def test_the_small_model_gives_its_published_numbers(folder):
    variables, meta = load_variables(folder / "mae", ("mae",))
    assert (meta["kind"], meta["step"]) == ("mae", 0)
    run = read_config(folder / "mae")
    model = make_mae(run.model, target_dim(run.target, 4, run.hog.cell_size, 9), jnp.float32)
    x = jnp.asarray(SMALL["input"].transpose(0, 2, 3, 1))
    noise, ratio = jnp.asarray(SMALL["noise"]), float(SMALL["mask_ratio"])
    out = jax.jit(lambda v: model.apply(v, x, noise, ratio))(variables)
    for key in ("latent", "pred"):
        np.testing.assert_allclose(out[key], SMALL[key], atol=1e-5)
    for name in ("mae", "encoder"):
        run = read_config(folder / name)
        params = load_variables(folder / name, KINDS)[0]["params"]["encoder"]
        encoder = make_encoder(run.model, jnp.float32)
        features = jax.jit(lambda p, e=encoder: e.apply({"params": p}, x, method="features"))
        np.testing.assert_allclose(features(params), SMALL["features"], atol=1e-5)


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["mae", slow("encoder"), slow("embedded")])
def test_finetune_starts_from_it(folder, tmp_path, name):
    few = {"total_steps": 1, "labels": "writer", "patches_per_class": 8, "netrvlad.init": "random"}
    config = toy(finetune_config.get_config(), folder, checkpoint=str(folder / name), **few)
    config.optim.learning_rate = config.optim.start_learning_rate = 0.0
    run_stage(config, tmp_path / "run")
    ours = load_variables(tmp_path / "run", ("writer",))[0]["params"]["encoder"]
    theirs = load_variables(folder / name, KINDS)[0]["params"]["encoder"]
    # The learning rate is zero: the parameters are those of the import.
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("name", "width", "models"),
    [
        ("mae", 64, ["pretrained", "random"]),
        slow("encoder", 64, ["pretrained", "random"]),
        ("writer", 10 * 32, ["finetuned", "random"]),
        slow("embedded", 10 * 20, ["finetuned", "random"]),
    ],
)
def test_embed_takes_it(folder, tmp_path, name, width, models):
    config = toy(embed_config.get_config(), folder, checkpoint=str(folder / name))
    assert len(run_stage(config, tmp_path / "embed").skipped) == 0
    embeddings = load_embeddings(tmp_path / "embed")
    assert embeddings.descriptors.shape == (4, width)
    assert embeddings.name == models[0]
    random = load_embeddings(tmp_path / "embed" / models[1])
    assert len(random) == 4
    assert np.linalg.matrix_rank(embeddings.descriptors) == 4


@pytest.mark.parametrize(
    ("name", "kinds", "makers"),
    [
        ("encoder", ("mae",), ["pretrain"]),
        ("writer", ("mae",), ["pretrain"]),
        ("mae", ("writer",), ["finetune"]),
        ("writer", ("encoder", "mae"), ["convert", "pretrain"]),
    ],
)
def test_a_wrong_kind_is_refused(folder, name, kinds, makers):
    """Pictures of reconstructions need the decoder, which only `mae` has."""
    with pytest.raises(UserError, match=f"is of kind '{name}', but this needs '{kinds[0]}'") as e:
        load_variables(folder / name, kinds)
    for maker in makers:
        assert f"configs/{maker}.py" in str(e.value)


def test_finetune_refuses_the_encoder_of_a_baseline(folder, tmp_path):
    (tmp_path / "config.json").write_text(finetune_config.get_config("encoder=resnet20").to_json())
    config = toy(finetune_config.get_config(), folder, checkpoint=str(tmp_path))
    with pytest.raises(UserError, match="has the encoder 'resnet20'"):
        finetune.resolve(config)
