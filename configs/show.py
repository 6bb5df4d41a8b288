"""Pictures of what a training run has learned: writes report.html of the run again.

    python -m saghog_jax.main --config=configs/show.py

Shows runs/pretrain in seconds on two CPU cores: curves, config, and for some patches the visible
tokens, the target HOG and the predicted HOG. Both training stages write this report when they end.
Another run, also one that is still training:

    python -m saghog_jax.main --config=configs/show.py --config.checkpoint=runs/finetune
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "show"
    # Run folder of pretrain or finetune.
    config.checkpoint = "runs/pretrain"
    # `reconstruction` (needs a checkpoint with a decoder), `classes` (patches that finetuning
    # treats as one class), `none`, or `auto`: `reconstruction` or `classes`, by the kind of the
    # run.
    config.pictures = "auto"
    # Number of patches in a reconstruction, or of classes.
    config.rows = 8
    # Checkpoint of the run: `last` or `best`.
    config.which = "last"
    return config
