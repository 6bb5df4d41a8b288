"""Modules from the sections of a config; the one place where fields meet constructors."""

from ml_collections import ConfigDict

from saghog_jax.models.mae import MaskedAutoencoder
from saghog_jax.models.vit import Encoder
from saghog_jax.models.writer_model import WriterModel


def make_mae(model: ConfigDict, target_dim: int) -> MaskedAutoencoder:
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
    )


def make_encoder(model: ConfigDict, dropout: float = 0.0) -> Encoder:
    """The encoder alone; `dropout` acts with `train=True` only."""
    return Encoder(
        token_size=model.token_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        dropout=dropout,
    )


def make_writer_model(model: ConfigDict, netrvlad: ConfigDict, dropout: float = 0.0) -> WriterModel:
    """Encoder and NetRVLAD of the `model` and `netrvlad` sections."""
    return WriterModel(encoder=make_encoder(model, dropout), num_clusters=netrvlad.num_clusters)
