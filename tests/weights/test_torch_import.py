"""Published names: both ways for every parameter, architecture from shapes, reports, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

from saghog_jax.models.mae import MaskedAutoencoder
from saghog_jax.models.pos_embed import sincos_2d
from saghog_jax.models.vit import Encoder
from saghog_jax.models.writer_model import WriterModel
from saghog_jax.weights.torch_names import architecture, from_torch_names, to_torch_names

GOLDEN = np.load(TESTS / "golden" / "mae_small.npz")
PUBLISHED = {k[2:]: GOLDEN[k] for k in GOLDEN.files if k.startswith("w/")}
IMAGE, NOISE = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 64))


def mae_template(width=64):
    model = MaskedAutoencoder(width=width, depth=2, decoder_width=64, decoder_heads=4)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, NOISE, 0.75))["params"]


def random_like(template):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda t: rng.normal(size=t.shape).astype(np.float32), template)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_published_to_ours_and_back_is_exact():
    params, report = from_torch_names(PUBLISHED, mae_template())
    assert (len(report.used), report.missing, report.unused) == (50 - 2, (), ())
    back, _ = to_torch_names(params, 32)
    fixed = {"pos_embed", "decoder_pos_embed"}
    assert set(back) - fixed == set(PUBLISHED)
    for name, array in PUBLISHED.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    for name in fixed:
        np.testing.assert_array_equal(back[name][0, 1:], sincos_2d(64, (8, 8)))
        assert not back[name][0, 0].any()


@pytest.mark.parametrize("embed_dim", [0, 6])
def test_writer_model_to_published_and_back_is_exact(embed_dim):
    model = WriterModel(Encoder(width=16, depth=1, heads=2), 5, embed_dim=embed_dim)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE))["params"]
    params = random_like(template)
    weights, report = to_torch_names(params, 32, target_channels=3)
    assert not report.missing
    assert weights["nv.conv.weight"].shape == (5, embed_dim or 16, 1, 1)
    assert weights["backbone.target_generator.weight_y"].shape == (1, 3, 3, 3)
    back, report = from_torch_names(weights, template)
    assert_same(back, params)
    reasons = dict(report.unused)
    assert reasons["backbone.pos_embed"] == "fixed position embedding, equal to ours"
    assert "gradient kernel" in reasons["backbone.target_generator.weight_x"]
    sizes = architecture(weights)
    assert sizes.pop("embed_dim", 0) == embed_dim
    assert sizes == {"token_size": 4, "width": 16, "depth": 1, "mlp_ratio": 4, "patch_size": 32,
                     "num_clusters": 5}  # fmt: skip


def test_architecture_from_shapes():
    assert architecture(PUBLISHED) == {
        "token_size": 4, "width": 64, "depth": 2, "mlp_ratio": 4, "target_dim": 9,
        "decoder_width": 64, "decoder_depth": 1,
    }  # fmt: skip
    assert architecture({**PUBLISHED, "pos_embed": np.zeros((1, 65, 64))})["patch_size"] == 32
    with pytest.raises(ValueError, match=r"no encoder.*first names are \['fc\.weight'\]"):
        architecture({"fc.weight": np.zeros((2, 2))})


def test_names_of_the_data_parallel_wrapper():
    wrapped = {f"module.{name}": array for name, array in PUBLISHED.items()}
    assert architecture(wrapped) == architecture(PUBLISHED)
    a, _ = from_torch_names(wrapped, mae_template())
    b, _ = from_torch_names(PUBLISHED, mae_template())
    assert_same(a, b)


def test_every_key_is_reported():
    weights = {**PUBLISHED, "extra.weight": np.zeros(3), "pos_embed": np.zeros((1, 65, 64))}
    del weights["blocks.1.mlp.fc2.bias"]
    params, report = from_torch_names(weights, mae_template())
    assert report.missing == ("encoder/block_1/fc2/bias",)
    assert "bias" not in params["encoder"]["block_1"]["fc2"]
    reasons = dict(report.unused)
    assert reasons["extra.weight"] == "this model has no parameter of this name"
    assert reasons["pos_embed"].startswith("WARNING: the position embedding differs from ours")
    assert len(report.lines()) == len(weights) + 1
    assert "missing  encoder/block_1/fc2/bias" in report.lines()
    encoder, report = from_torch_names(PUBLISHED, {"encoder": mae_template()["encoder"]})
    assert set(encoder) == {"encoder"}
    assert dict(report.unused)["mask_token"].startswith("decoder of pretraining")


def test_a_shape_that_does_not_fit_names_both():
    with pytest.raises(ValueError, match=r"cls_token has shape \(1, 1, 64\), the model \(1, 1, 32"):
        from_torch_names(PUBLISHED, mae_template(width=32))
    with pytest.raises(ValueError, match=r"\(192, 64\), the model \(96, 32\)"):
        from_torch_names(PUBLISHED, mae_template(width=32))


def test_parameters_without_a_published_name_are_reported():
    template = {**mae_template(), "ridge": jax.ShapeDtypeStruct((1,), jnp.float32)}
    weights, report = to_torch_names(random_like(template), 32)
    assert report.missing == ("ridge",)
    assert not any("ridge" in name for name in weights)
