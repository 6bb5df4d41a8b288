"""Modules from the sections of a config; the one place where fields meet constructors.

`dtype` is that of the operands of matrix products, see precision.py.
"""

from jax.typing import DTypeLike
from ml_collections import ConfigDict

from saghog_jax.models.mae import MaskedAutoencoder
from saghog_jax.models.vit import Encoder
from saghog_jax.models.writer_model import WriterModel


def make_mae(model: ConfigDict, target_dim: int, dtype: DTypeLike) -> MaskedAutoencoder:
    """The masked autoencoder of a `model` section, predicting `target_dim` channels a token."""
    return MaskedAutoencoder(
        patch_size=model.patch_size,
        token_size=model.token_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        decoder_width=model.decoder_width,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
        target_dim=target_dim,
        dtype=dtype,
    )


def make_encoder(model: ConfigDict, dtype: DTypeLike, dropout: float = 0.0) -> Encoder:
    """The encoder alone; `dropout` acts with `train=True` only."""
    return Encoder(
        token_size=model.token_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        dropout=dropout,
        dtype=dtype,
    )


def make_writer_model(
    model: ConfigDict, netrvlad: ConfigDict, dtype: DTypeLike, dropout: float = 0.0
) -> WriterModel:
    """Encoder and NetRVLAD of the `model` and `netrvlad` sections."""
    return WriterModel(
        encoder=make_encoder(model, dtype, dropout),
        num_clusters=netrvlad.num_clusters,
        dtype=dtype,
    )
