"""Every field of a config that names a size or a choice of a model reaches its module."""

import jax.numpy as jnp
import pytest

from saghog_jax.configs import finetune, training
from saghog_jax.models.build import make_encoder, make_mae, make_writer_model

# All different, and different from the defaults.
SIZES = {
    "patch_size": 24, "token_size": 6, "width": 30, "depth": 7, "heads": 5, "mlp_ratio": 3,
    "decoder_width": 22, "decoder_depth": 8, "decoder_heads": 11,
}  # fmt: skip


@pytest.fixture
def model():
    model = training.model_config("cpu")
    assert set(model) == set(SIZES)
    model.update(SIZES)
    return model


def test_sizes_of_the_autoencoder(model):
    mae = make_mae(model, 9, jnp.bfloat16, remat=True)
    assert {name: getattr(mae, name) for name in SIZES} == SIZES
    assert (mae.target_dim, mae.dtype, mae.remat) == (9, jnp.bfloat16, True)


def test_sizes_of_the_encoder(model):
    encoder = make_encoder(model, jnp.bfloat16, dropout=0.3, remat=True)
    for name in ("token_size", "width", "depth", "heads", "mlp_ratio"):
        assert getattr(encoder, name) == SIZES[name]
    assert (encoder.dropout, encoder.dtype, encoder.remat) == (0.3, jnp.bfloat16, True)


def test_choices_of_the_writer_model(model):
    config = finetune.get_config()
    changes = {
        "precision": "mixed", "netrvlad.num_clusters": 17, "netrvlad.normalized": True,
        "descriptor": "foreground", "min_token_ink": 0.2, "embed_dim": 21, "embed_dropout": 0.4,
    }  # fmt: skip
    config.update_from_flattened_dict(changes)
    config.model = model
    writer = make_writer_model(config)
    assert (writer.encoder.width, writer.num_clusters, writer.normalized) == (
        30,
        17,
        True,
    )
    assert (writer.descriptor, writer.min_token_ink) == ("foreground", 0.2)
    assert (writer.embed_dim, writer.dropout, writer.dtype) == (
        21,
        0.4,
        jnp.bfloat16,
    )
    config.encoder = "resnet56"
    assert make_writer_model(config).encoder.size == "resnet56"
