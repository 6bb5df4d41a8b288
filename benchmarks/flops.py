"""Floating-point operations of the plain models, by formula.

A product of m x k by k x n has 2 m k n. Forward and backward together are three times the forward
products (the first layer has no gradient of its input: two times). "Plain" is the model as
published, without what is left out here because it does not change the result.
"""

from ml_collections import ConfigDict

from saghog_jax.models.mae import num_keep
from saghog_jax.models.targets import target_dim


def block_flops(tokens: int, width: int, mlp_ratio: int) -> int:
    """Forward, of one sequence: queries, keys, values, projection, MLP and both products of
    attention."""
    return 2 * tokens * width * ((4 + 2 * mlp_ratio) * width + 2 * tokens)


def pretraining_flops(config: ConfigDict) -> int:
    """Forward and backward of a global batch of the plain masked autoencoder."""
    model = config.model
    tokens = (model.patch_size // model.token_size) ** 2
    seen = 1 + num_keep(tokens, config.mask_ratio)
    channels = target_dim(
        config.target, model.token_size, config.hog.cell_size, config.hog.num_bins
    )
    # The published code embeds all tokens, then drops some.
    embed = 2 * tokens * 3 * model.token_size**2 * model.width
    encoder = model.depth * block_flops(seen, model.width, model.mlp_ratio)
    decoder = 2 * seen * model.width * model.decoder_width
    decoder += model.decoder_depth * block_flops(1 + tokens, model.decoder_width, model.mlp_ratio)
    decoder += 2 * (1 + tokens) * model.decoder_width * channels
    return config.global_batch_size * (2 * embed + 3 * (encoder + decoder))


def encoding_flops(model: ConfigDict) -> int:
    """Forward of one patch through the plain encoder, all tokens."""
    tokens = (model.patch_size // model.token_size) ** 2
    embed = 2 * tokens * 3 * model.token_size**2 * model.width
    return embed + model.depth * block_flops(1 + tokens, model.width, model.mlp_ratio)
