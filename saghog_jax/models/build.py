"""Builds modules from the sections of a config; no other module reads these fields.

`dtype` is the type of the operands of matrix products, see devices/precision.py.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from saghog_jax.devices.precision import operand_dtype
from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.models.mae import MaskedAutoencoder
from saghog_jax.models.resnet import DEPTHS, ResNet
from saghog_jax.models.targets import target_dim
from saghog_jax.models.vit import Encoder
from saghog_jax.models.writer_model import WriterModel

ENCODERS = ("vit", *DEPTHS)
REMATS = ("none", "blocks")


def use_remat(config: ConfigDict) -> bool:
    """Whether `config.remat` switches rematerialisation on.

    Raises:
      UserError: the choice is unknown.
    """
    check_choice("config.remat", config.remat, REMATS)
    return config.remat == "blocks"


def make_mae(
    model: ConfigDict, target_dim: int, dtype: DTypeLike, remat: bool = False
) -> MaskedAutoencoder:
    """The masked autoencoder of a `model` section; it predicts `target_dim` channels per token."""
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
        remat=remat,
        dtype=dtype,
    )


def make_encoder(
    model: ConfigDict,
    dtype: DTypeLike,
    dropout: float = 0.0,
    kind: str = "vit",
    remat: bool = False,
) -> Encoder | ResNet:
    """The encoder: a ViT with the sizes of the `model` section, or a baseline with fixed sizes.

    Args:
      dropout: dropout rate of the ViT's tokens, with `train=True` only.
      kind: one of `ENCODERS`.
      remat: see `Encoder`; without effect on a baseline.
    """
    if kind != "vit":
        return ResNet(kind, dtype)
    return Encoder(
        token_size=model.token_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        dropout=dropout,
        remat=remat,
        dtype=dtype,
    )


def make_writer_model(config: ConfigDict, dropout: float = 0.0, remat: bool = False) -> WriterModel:
    """Encoder and NetRVLAD of a finetuning config with a resolved precision."""
    dtype = operand_dtype(config.precision)
    return WriterModel(
        encoder=make_encoder(config.model, dtype, dropout, config.encoder, remat),
        num_clusters=config.netrvlad.num_clusters,
        normalized=config.netrvlad.normalized,
        descriptor=config.descriptor,
        min_token_ink=config.min_token_ink,
        embed_dim=config.embed_dim,
        dropout=config.embed_dropout,
        dtype=dtype,
    )


def model_of(config: ConfigDict) -> MaskedAutoencoder:
    """The masked autoencoder of a pretraining config."""
    channels = target_dim(
        config.target, config.model.token_size, config.hog.cell_size, config.hog.num_bins
    )
    remat = use_remat(config)
    return make_mae(config.model, channels, operand_dtype(config.precision), remat)


def init_variables(config: ConfigDict, rng: PRNGKeyArray) -> dict:
    """The model before the first update: {"params": {"encoder": ..., "decoder": ...}}."""
    model, size = model_of(config), config.model.patch_size
    tokens = (size // config.model.token_size) ** 2
    images, noise = jnp.zeros((1, size, size, 3)), jnp.zeros((1, tokens))
    return model.init(rng, images, noise, config.mask_ratio, method="removed")


def init_writer_variables(config: ConfigDict, rng: PRNGKeyArray) -> dict:
    """The writer model before the first update: {"params": {"encoder": ..., "netrvlad": ...}}."""
    size = config.model.patch_size
    images, binary = jnp.zeros((1, size, size, 3)), jnp.zeros((1, size, size, 1))
    return make_writer_model(config).init(rng, images, binary=binary)
