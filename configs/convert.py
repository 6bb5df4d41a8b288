"""Weights of the published PyTorch code to a run folder, or a run folder to such weights.

    python -m saghog_jax.main --config=configs/convert.py --config.checkpoint=model.pt

writes runs/convert in seconds. Finetune and embed read this run folder with
`--config.checkpoint=runs/convert`. The weights are a file with the published names: .pt (with
PyTorch: the extra `torch`), .safetensors or .npz, of a masked autoencoder, of its encoder alone, or
of a finetuned model. The other direction writes runs/convert/weights.safetensors:

    python -m saghog_jax.main --config=configs/convert.py --config.checkpoint=runs/pretrain

report.txt lists every key: used, missing, or unused and why.

Variants: `published` (default) and `packed`, which packs the run folder of a finetuning to a few
small files that can be passed on and stand wherever a run folder is read (docs/formats.md):

    python -m saghog_jax.main --config=configs/convert.py:packed --config.checkpoint=runs/finetune \
        --workdir=MODEL
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common, finetune, pretrain


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("published", "packed"))
    config = ConfigDict()
    config.stage = "convert"
    # Form that a run folder is written in: weights with the `published` names, or a `packed` model.
    config.form = arg.variant
    # For `packed`: checkpoint of the run, `last` or `best`.
    config.which = "last"
    # A file of weights, or a run folder.
    config.checkpoint = ""
    # Attention heads of the encoder and of the decoder, which the shapes of the weights do not
    # show.
    config.heads = 8
    config.decoder_heads = 16
    # For a finetuned model: its input, `page` (the colours of the page) or `binary` (its ink).
    config.input = "binary"
    # Function: stage (`pretrain` or `finetune`) -> config that is written into the run folder, with
    # the sizes read from the weights.
    config.run_config = run_config
    return config


def run_config(stage: str) -> ConfigDict:
    """The default config of a training stage."""
    return {"pretrain": pretrain, "finetune": finetune}[stage].get_config()
