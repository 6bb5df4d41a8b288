"""What both training stages share: the model, the run, augmentation and the optimiser."""

from ml_collections import ConfigDict

from saghog_jax.configs import common


def model_config(size: str) -> ConfigDict:
    """The ViT-MAE.

    Args:
      size: `cpu` (trains in minutes on two cores), `small` (a sixth of the operations a patch) or
        `paper` (28.7 million parameters).
    """
    model = ConfigDict()
    # Side of a patch in pixels, as in the store.
    model.patch_size = 32
    # Side of a token in pixels; tokens are the ViT's units inside a patch (64 a patch for 4
    # pixels).
    model.token_size = 8 if size == "small" else 4
    # Width, depth and attention heads of the encoder.
    model.width, model.depth, model.heads = {
        "cpu": (128, 4, 4),
        "small": (64, 4, 2),
        "paper": (512, 8, 8),
    }[size]
    # Width of the hidden layer of a block, as a multiple of the block's width.
    model.mlp_ratio = 4
    # Width, depth and attention heads of the decoder.
    model.decoder_width, model.decoder_depth, model.decoder_heads = {
        "cpu": (64, 1, 4),
        "small": (64, 1, 4),
        "paper": (512, 1, 16),
    }[size]
    return model


def run_config(config: ConfigDict) -> None:
    """Adds the fields of a training run to `config`, in place."""
    # Seed of all random numbers: weights, order of the data, masks, augmentation.
    config.seed = 0
    # Patches a step, over all devices and hosts.
    config.global_batch_size = 512
    # Updates of the parameters.
    config.total_steps = 1000
    # Operands of matrix products: `float32`, `mixed` (bfloat16, sums in float32) or `auto`: mixed
    # on accelerators and on CPUs with bfloat16 instructions.
    config.precision = "auto"
    # Parts of the batch that are computed one after the other: the same update in less memory.
    # Pretraining takes no longer. Finetuning takes one more forward pass, because its loss needs
    # the whole batch, so that each part is computed twice.
    config.accumulate = 1
    # Activations recomputed in the backward pass: `none`, or `blocks` (all but the inputs of the
    # transformer blocks and of the loss).
    config.remat = "none"
    # Axis sizes of the device mesh; -1: all remaining devices.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    # Devices that the cores of a CPU form; they are devices of the mesh. 0: the number that the run
    # was begun with; for a new run one a core if the model is small, else one.
    config.cpu_devices = 0
    # Several processes, on one machine or on many.
    config.distributed = common.distributed_config()
    config.validation = validation_config()
    # Steps between two lines of metrics.
    config.log_every = 50
    # Steps between two checkpoints; there is also one at the end. Kept are the newest
    # `keep_checkpoints`, the best, and one every `keep_every` steps (0: none of these).
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.keep_every = 0
    # Write the metrics also as TensorBoard events, in the run folder.
    config.tensorboard = True
    # Weights & Biases, if `project` is set. `mode`: `offline` (upload by `wandb sync`) or `online`.
    config.wandb = ConfigDict({"project": "", "mode": "offline"})
    # `FIRST,LAST`: write a trace of these steps of this process, for TensorBoard or Perfetto.
    # Empty: no trace.
    config.profile = ""
    # Threads that read batches, and batches that are read in advance.
    config.loader = ConfigDict({"threads": 2, "prefetch": 4})


def validation_config() -> ConfigDict:
    """Validation during training, on pages of held-out writers."""
    validation = ConfigDict()
    # Fraction of the writers (and of the pages without a writer) that is held out. 0: no validation
    # and no best checkpoint.
    validation.share = 0.0
    # Steps between two validations; there is also one at the end.
    validation.every = 500
    # Most patches of a page.
    validation.patches_per_page = 64
    # Metric of the best checkpoint: `map` (retrieval among the held-out pages; needs writers) or
    # `loss` (of the held-out patches; for pretraining).
    validation.monitor = "map"
    # Training stops after this many validations without a new best value; 0: never.
    validation.patience = 0
    return validation


def augment_config(**changes: float) -> ConfigDict:
    """Augmentation of training patches, on the device. A probability of 0 turns a step off."""
    augment = ConfigDict()
    # Probabilities that a patch becomes grey, that it is replaced by its binarised ink, that its
    # ink becomes thicker, and that its ink becomes thinner.
    augment.gray = 0.0
    augment.binarize = 0.0
    augment.erode = 0.0
    augment.dilate = 0.0
    # Probability that a patch is rotated by up to `degrees`, shifted by up to the fraction
    # `translate` of its side, and enlarged by a factor from `scale_low` to `scale_high`.
    augment.affine = 0.0
    augment.degrees = 10.0
    augment.translate = 0.1
    augment.scale_low = 0.9
    augment.scale_high = 1.1
    # Probability that the colours change: brightness, contrast and saturation by a factor between 1
    # minus and 1 plus the fields below.
    augment.jitter = 0.0
    augment.brightness = 0.4
    augment.contrast = 0.4
    augment.saturation = 0.4
    augment.update(changes)
    return augment


def optim_config() -> ConfigDict:
    """AdamW with linear warm-up and cosine decay, changed at every step, as published."""
    optim = ConfigDict()
    # Learning rate: the highest, the first and the last.
    optim.learning_rate = 8e-4
    optim.start_learning_rate = 8e-5
    optim.final_learning_rate = 8e-6
    # Updates until the highest learning rate.
    optim.warmup_steps = 100
    # Decoupled (AdamW) weight decay of matrices, times the learning rate.
    optim.weight_decay = 0.05
    # Decay rates of AdamW's two moments, and the constant added to the denominator.
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    # Gradients are clipped to this global norm.
    optim.clip_norm = 0.02
    return optim
