"""What a training run has learned, in pictures: writes the run's report.html anew.

    python -m saghog_jax.main --config=configs/show.py

Shows runs/pretrain: curves, config, and for some patches what the encoder saw, the HOG it was to
predict and the HOG it predicted; seconds on two CPU cores. Both training stages do so when they
end. Another run, such as one that is still under way:

    python -m saghog_jax.main --config=configs/show.py --config.checkpoint=runs/finetune
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "show"
    # Run folder that pretrain or finetune wrote.
    config.checkpoint = "runs/pretrain"
    # `reconstruction` (needs a checkpoint with a decoder), `classes` (what finetuning was told to
    # belong together), `none`, or `auto`: what fits the run.
    config.pictures = "auto"
    # Patches shown in a reconstruction, or classes.
    config.rows = 8
    # The run's checkpoint: `last` or `best`.
    config.which = "last"
    return config
