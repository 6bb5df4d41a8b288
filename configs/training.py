"""What both training stages share: the model, the run, augmentation and the optimiser."""

from ml_collections import ConfigDict

from saghog_jax.configs import common


def model_config(size: str) -> ConfigDict:
    """The ViT-MAE: `cpu` (trains in minutes on two cores), `small` (a sixth of its work a patch) or
    `paper` (28.7 million parameters)."""
    model = ConfigDict()
    # Side of a patch in pixels, as the store cuts them.
    model.patch_size = 32
    # Side of a token, the ViT's unit inside a patch: 64 tokens a patch.
    model.token_size = 8 if size == "small" else 4
    # The encoder's transformer.
    model.width, model.depth, model.heads = {
        "cpu": (128, 4, 4),
        "small": (64, 4, 2),
        "paper": (512, 8, 8),
    }[size]
    # Width of the hidden layer of a block, in widths.
    model.mlp_ratio = 4
    # The decoder's transformer.
    model.decoder_width, model.decoder_depth, model.decoder_heads = {
        "cpu": (64, 1, 4),
        "small": (64, 1, 4),
        "paper": (512, 1, 16),
    }[size]
    return model


def run_config(config: ConfigDict) -> None:
    """Adds what both training stages share to `config`, in place."""
    # Root of all randomness: weights, data order, masks, augmentation.
    config.seed = 0
    # Patches a step, over all devices and hosts.
    config.global_batch_size = 512
    # Updates of the parameters.
    config.total_steps = 1000
    # Operands of matrix products: `float32`, `mixed` (bfloat16, sums in float32) or `auto`: mixed
    # on accelerators and on CPUs with bfloat16 instructions.
    config.precision = "auto"
    # The batch goes through the model in so many parts, one after the other: the same update in
    # less memory. Pretraining takes no more time for it, finetuning a forward pass more (its loss
    # sees the whole batch, for which each part is computed twice).
    config.accumulate = 1
    # What is kept for the gradient: `none` (nothing is computed again) or `blocks` (the inputs of
    # transformer blocks and of the loss; the rest is computed again).
    config.remat = "none"
    # Axis sizes of the device mesh; -1 takes what is left of the devices.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    # Several processes, on one machine or on many.
    config.distributed = common.distributed_config()
    # Evaluation while training, on pages of writers that are held out.
    config.validation = ConfigDict(
        {
            # Share of the writers (and of the pages without one) that is not trained on; 0: none,
            # no evaluation, and no best checkpoint.
            "share": 0.0,
            # Evaluated every so many steps and at the end.
            "every": 500,
            # Patches of a page, at most.
            "patches_per_page": 64,
            # What makes a checkpoint the best: `map` (retrieval among the held-out pages; needs
            # writers) or `loss` (pretraining: of the held-out patches).
            "monitor": "map",
            # Training stops after so many evaluations without a new best; 0: never.
            "patience": 0,
        }
    )
    # A line of metrics every so many steps.
    config.log_every = 50
    # A checkpoint every so many steps and at the end; the newest `keep_checkpoints` stay, the best,
    # and those of every `keep_every` steps (0: no others).
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.keep_every = 0
    # Writes the metrics also as TensorBoard events, in the run folder.
    config.tensorboard = True
    # Weights & Biases, if a project is named: `offline` (for `wandb sync` to upload) or `online`.
    config.wandb = ConfigDict({"project": "", "mode": "offline"})
    # `FIRST,LAST`: a trace of these steps of this call, for TensorBoard or Perfetto; empty: none.
    config.profile = ""
    # Threads that read batches, and how many batches they read in advance.
    config.loader = ConfigDict({"threads": 2, "prefetch": 4})


def augment_config(**changes: float) -> ConfigDict:
    """Augmentation of training patches, on the device; off where the probability is 0."""
    augment = ConfigDict()
    # Probabilities a patch: grey, replaced by its binary form, ink made thicker, ink made thinner.
    augment.gray = 0.0
    augment.binarize = 0.0
    augment.erode = 0.0
    augment.dilate = 0.0
    # Probability that a patch is turned by up to `degrees`, moved by up to the share `translate` of
    # its side, and enlarged by a factor from `scale_low` to `scale_high`.
    augment.affine = 0.0
    augment.degrees = 10.0
    augment.translate = 0.1
    augment.scale_low = 0.9
    augment.scale_high = 1.1
    # Probability that the colours change: each property by a factor of 1 minus to 1 plus these.
    augment.jitter = 0.0
    augment.brightness = 0.4
    augment.contrast = 0.4
    augment.saturation = 0.4
    augment.update(changes)
    return augment


def optim_config() -> ConfigDict:
    """AdamW with warm-up and cosine decay, a step at a time, as published."""
    optim = ConfigDict()
    # Peak, first and last learning rate.
    optim.learning_rate = 8e-4
    optim.start_learning_rate = 8e-5
    optim.final_learning_rate = 8e-6
    # Updates in which the learning rate rises to its peak.
    optim.warmup_steps = 100
    # An update takes away this share of each matrix, times the learning rate.
    optim.weight_decay = 0.05
    # Decay of AdamW's two moments, and what is added to the root that it divides by.
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    # Global norm the gradient is clipped to.
    optim.clip_norm = 0.02
    return optim
