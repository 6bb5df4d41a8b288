"""Weights of the published PyTorch code to a run folder, or a run folder to such weights.

    python -m saghog_jax.main --config=configs/convert.py --config.checkpoint=model.pt

makes runs/convert, which finetune (`--config.checkpoint=runs/convert`) and embed
(`--config.checkpoint=runs/convert`) accept; seconds. Reads .pt (with PyTorch: the extra `torch`),
.safetensors and .npz under the published names, a masked autoencoder, its encoder alone, or a
finetuned model. The other way round, into runs/convert/weights.safetensors:

    python -m saghog_jax.main --config=configs/convert.py --config.checkpoint=runs/pretrain

Every key is listed in report.txt: taken, missing, or unused and why.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common, finetune, pretrain


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("published",))
    config = ConfigDict()
    config.stage = "convert"
    # A file of weights, or a run folder.
    config.checkpoint = ""
    # Attention heads of encoder and decoder: the shapes of weights do not tell them.
    config.heads = 8
    config.decoder_heads = 16
    # What the run folder says about itself, by kind of the weights; sizes are read off them.
    config.mae = pretrain.get_config()
    config.writer = finetune.get_config()
    config.writer.netrvlad.init = "random"
    return config
