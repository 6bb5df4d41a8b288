"""The stage convert: the small published model through the command, both ways, and bad files."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS
from safetensors.numpy import load_file, save_file

from saghog_jax import convert
from saghog_jax.configs import convert as convert_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.models.build import make_encoder, make_mae, make_writer_model
from saghog_jax.models.mae import MaskedAutoencoder
from saghog_jax.models.netrvlad import l2_normalize, vlad
from saghog_jax.models.targets import target_dim
from saghog_jax.runs.checkpoint import load_variables, read_config
from saghog_jax.weights import torch_names
from saghog_jax.weights.files import read_weights

FOLDER = TESTS / "golden"
GOLDEN = np.load(FOLDER / "mae_small.npz")
PUBLISHED = {k[2:]: GOLDEN[k] for k in GOLDEN.files if k.startswith("w/")}
SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)[None, None]


def config(source, **fields):
    made = convert_config.get_config()
    made.checkpoint = str(source)
    made.heads, made.decoder_heads = 8, 4
    made.update(fields)
    return made


@pytest.fixture
def weights():
    """The small model as the published code stores it."""
    table = np.zeros((1, 65, 64), np.float32)
    return {
        **PUBLISHED,
        "pos_embed": table,
        "target_generator.weight_x": SOBEL,
        "target_generator.weight_y": SOBEL.swapaxes(2, 3),
    }


def test_the_imported_small_model_gives_its_published_numbers(tmp_path, weights):
    np.savez(tmp_path / "w.npz", **weights)
    convert.run(config(tmp_path / "w.npz"), tmp_path / "run")
    variables, meta = load_variables(tmp_path / "run", ("mae",))
    assert (meta["kind"], meta["step"]) == ("mae", 0)
    run = read_config(tmp_path / "run")
    assert (run.target, run.hog.cell_size) == ("hog_binary", 4)
    model = make_mae(run.model, target_dim(run.target, 4, run.hog.cell_size, 9), jnp.float32)
    x = jnp.asarray(GOLDEN["input"].transpose(0, 2, 3, 1))
    out = jax.jit(lambda v, n: model.apply(v, x, n, 0.75))(variables, jnp.asarray(GOLDEN["noise"]))
    for key in ("latent", "pred"):
        np.testing.assert_allclose(out[key], GOLDEN[key], atol=1e-5)
    encoder = make_encoder(run.model, jnp.float32)
    features = jax.jit(
        lambda v: encoder.apply({"params": v["params"]["encoder"]}, x, method="features")
    )(variables)
    np.testing.assert_allclose(features, GOLDEN["features"], atol=1e-5)
    lines = (tmp_path / "run" / "report.txt").read_text().splitlines()
    assert len(lines) == len(weights)
    assert any(re.match("unused +pos_embed: WARNING", line) for line in lines)


def test_import_and_export_is_exact(tmp_path, weights):
    save_file(weights, tmp_path / "w.safetensors")
    convert.run(config(tmp_path / "w.safetensors"), tmp_path / "run")
    convert.run(config(tmp_path / "run"), tmp_path / "out")
    back = load_file(tmp_path / "out" / "weights.safetensors")
    assert set(back) == {*weights, "decoder_pos_embed"}
    for name in weights.keys() - {"pos_embed"}:
        np.testing.assert_array_equal(back[name], weights[name], err_msg=name)


@pytest.mark.parametrize(("tag", "embed_dim"), [("wrap", 0), ("wrap20", 20)])
def test_a_finetuned_model_and_back(tmp_path, tag, embed_dim):
    golden = np.load(FOLDER / "netrvlad.npz")
    stored = {k.removeprefix(f"{tag}_w/"): golden[k] for k in golden.files
              if k.startswith(f"{tag}_w/")}  # fmt: skip
    np.savez(tmp_path / "w.npz", **stored)
    convert.run(config(tmp_path / "w.npz", heads=4), tmp_path / "run")
    variables, meta = load_variables(tmp_path / "run", ("writer",))
    assert meta["kind"] == "writer"
    run = read_config(tmp_path / "run")
    assert (run.netrvlad.num_clusters, run.model.width, run.checkpoint) == (10, 32, "")
    assert run.embed_dim == embed_dim
    assert (run.input, run.netrvlad.init) == ("binary", "random")
    _, _, run_config, _ = convert.from_published(stored, config("w.npz", heads=4, input="page"))
    assert run_config.input == "page"
    x = jnp.asarray(golden[f"{tag}_in"].transpose(0, 2, 3, 1))
    run.precision = "float32"
    features, assignment = jax.jit(make_writer_model(run).apply)(variables, x)
    y = vlad(assignment, features, variables["params"]["netrvlad"]["centroids"])
    y = l2_normalize(y.reshape(len(x), -1))
    np.testing.assert_allclose(y, golden[f"{tag}_out"], atol=1e-5)
    convert.run(config(tmp_path / "run"), tmp_path / "out")
    back = load_file(tmp_path / "out" / "weights.safetensors")
    assert set(back) == {*stored, "backbone.pos_embed"}
    for name, array in stored.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("sizes", [
    {"width": 24, "depth": 1, "heads": 2, "decoder_width": 20, "decoder_depth": 2},
    {"width": 40, "depth": 3, "heads": 5, "mlp_ratio": 2, "token_size": 8, "target_dim": 36},
])  # fmt: skip
def test_any_width_and_depth(tmp_path, sizes):
    sizes = {"decoder_width": 16, "decoder_heads": 4, **sizes}
    model = MaskedAutoencoder(**sizes)
    tokens = (32 // sizes.get("token_size", 4)) ** 2
    x, noise = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, tokens))
    params = jax.jit(lambda k: model.init(k, x, noise, 0.5))(jax.random.key(3))["params"]
    weights, _ = torch_names.to_torch_names(params, 32, target_channels=1)
    save_file(weights, tmp_path / "w.safetensors")
    source = config(tmp_path / "w.safetensors", heads=sizes["heads"])
    convert.run(source, tmp_path / "run")
    found = load_variables(tmp_path / "run", ("mae",))[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(params))
    run = read_config(tmp_path / "run").model
    for field, size in sizes.items():
        if field != "target_dim":
            assert run[field] == size, field
    report = (tmp_path / "run" / "report.txt").read_text().splitlines()
    assert len(report) == len(weights)
    assert sum(line.startswith("used ") for line in report) == len(jax.tree.leaves(params))


def test_an_encoder_alone_has_its_own_kind(tmp_path):
    encoder = {k: v for k, v in PUBLISHED.items() if "decoder" not in k and k != "mask_token"}
    np.savez(tmp_path / "w.npz", **encoder)
    convert.run(config(tmp_path / "w.npz"), tmp_path / "run")
    # Who needs a decoder is told that this one has none.
    with pytest.raises(UserError, match="of kind 'encoder', but this needs 'mae'"):
        load_variables(tmp_path / "run", ("mae",))


def test_the_same_command_again(tmp_path, weights, capsys):
    np.savez(tmp_path / "w.npz", **weights)
    for _ in range(2):
        convert.run(config(tmp_path / "w.npz"), tmp_path / "run")
    assert "imported before: " in capsys.readouterr().out
    weights["cls_token"] = weights["cls_token"] + 1
    np.savez(tmp_path / "other.npz", **weights)
    with pytest.raises(UserError, match="holds another run"):
        convert.run(config(tmp_path / "other.npz"), tmp_path / "run")


@pytest.mark.parametrize(("channels", "token_size", "target", "cell_size"), [
    (27, 4, None, None), (36, 8, "hog_binary", 4), (9, 8, "hog_binary", 8),
    (192, 8, "pixel", 4), (36, 4, "hog_binary", 2),
])  # fmt: skip
def test_target_of_the_decoder(channels, token_size, target, cell_size):
    made = convert_config.run_config("pretrain")
    made.model.token_size = token_size
    stored = {} if target == "pixel" else {"target_generator.weight_x": SOBEL}
    if target is None:
        with pytest.raises(ValueError, match="27 channels a token of 4 pixels"):
            convert._set_target(made, stored, channels)
        return
    convert._set_target(made, stored, channels)
    assert (made.target, made.hog.cell_size) == (target, cell_size)
    if stored:
        stored = {"target_generator.weight_x": np.repeat(SOBEL, 3, axis=1)}
        convert._set_target(made, stored, channels)
        assert made.target == "hog_rgb"


def test_bad_sources_are_one_line(tmp_path, weights):
    with pytest.raises(UserError, match="config.checkpoint is empty"):
        convert.run(config(""), tmp_path / "run")
    with pytest.raises(UserError, match="there is no"):
        convert.run(config(tmp_path / "none.npz"), tmp_path / "run")
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="known: .pt, .pth, .safetensors, .npz"):
        convert.run(config(tmp_path / "w.bin"), tmp_path / "run")
    for suffix in ("npz", "safetensors"):
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(b"no such format")
        with pytest.raises(UserError, match=f"is not a readable {suffix} file"):
            convert.run(config(path), tmp_path / "run")
    np.savez(tmp_path / "pickled.npz", cls_token=np.array([{}], object))
    with pytest.raises(UserError, match="is not a readable npz file"):
        convert.run(config(tmp_path / "pickled.npz"), tmp_path / "run")
    np.savez(tmp_path / "foreign.npz", weight=np.zeros(3))
    with pytest.raises(UserError, match="contain no encoder"):
        convert.run(config(tmp_path / "foreign.npz"), tmp_path / "run")
    del weights["blocks.1.norm2.bias"]
    np.savez(tmp_path / "short.npz", **weights)
    with pytest.raises(UserError, match="lacks 1 parameters .*encoder/block_1/norm2/bias"):
        convert.run(config(tmp_path / "short.npz"), tmp_path / "run")
    weights["blocks.1.norm2.bias"] = np.zeros(32)
    np.savez(tmp_path / "wrong.npz", **weights)
    with pytest.raises(UserError, match=r"norm2.bias has shape \(32,\), the model \(64,\)"):
        convert.run(config(tmp_path / "wrong.npz"), tmp_path / "run")
    with pytest.raises(UserError, match="holds no run"):
        convert.run(config(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_torch_a_pt_file_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"needs PyTorch: pip install 'saghog_jax\[torch\]'"):
        convert.run(config(tmp_path / "w.pt"), tmp_path / "run")


def test_pt_files_where_torch_is_installed(tmp_path, weights):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    torch.save({"model_state_dict": tensors, "epoch": 3}, tmp_path / "w.pt")
    read = read_weights(tmp_path / "w.pt")
    assert set(read) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(read[name], array)
    # By way of a .pt file to a run folder, to safetensors, and into torch again: the same numbers.
    convert.run(config(tmp_path / "w.pt"), tmp_path / "run")
    convert.run(config(tmp_path / "run"), tmp_path / "out")
    back = load_torch(str(tmp_path / "out" / "weights.safetensors"))
    for name in tensors.keys() - {"pos_embed"}:
        assert torch.equal(back[name], tensors[name]), name
    torch.save({"model_state_dict": tensors, "code": json.dumps}, tmp_path / "code.pt")
    (tmp_path / "damaged.pt").write_bytes(b"no such format")
    for name in ("code.pt", "damaged.pt"):
        with pytest.raises(UserError, match="cannot be read safely"):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(UserError, match="contains no weights"):
        read_weights(tmp_path / "empty.pt")
