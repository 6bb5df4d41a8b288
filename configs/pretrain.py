"""Stage 1: a masked autoencoder learns handwriting from patches by predicting the HOG of their ink.

    python -m saghog_jax.main --config=configs/pretrain.py

Reads the built-in corpus; takes about two minutes on two CPU cores. Prepares the patch store if it
is missing, and writes runs/pretrain. On your own pages:

    python -m saghog_jax.main --config=configs/pretrain.py --config.data.pages=FOLDER_OR_MANIFEST \
        --workdir=runs/mine/pretrain

Variants: `cpu` (default: width 128, depth 4), `small` (for some hundred pages and a laptop: width
64, tokens of 8 x 8 pixels, then configs/finetune.py:small) and `paper` (width 512, depth 8, 28.7
million parameters, 200 epochs of 24,000 pages: docs/experiments.md). Arguments name the published
experiments:

    python -m saghog_jax.main --config=configs/pretrain.py:paper,mask_ratio=0.9,width=128

`mask_ratio` · `width` of the encoder · `target` hog_binary, hog_gray, hog_rgb, pixel ·
`binarization` isauvola, sauvola, su, otsu · `source` store, crops (the default of `paper`) ·
`regions` none, ink (the default of `paper`), masks, xml, sam: patches are cut only where
handwriting is found.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common, training
from saghog_jax.configs.regions import regions_config

SOURCES = ("store", "crops")


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(
        arg,
        ("cpu", "small", "paper"),
        mask_ratio=0.75,
        width=0,
        target="hog_binary",
        binarization="",
        source="",
        regions="",
    )
    config = ConfigDict()
    config.stage = "pretrain"
    _add_patches(config, arg)
    # Run folder whose weights the run starts from: the encoder and, if it fits, the decoder. Empty:
    # from scratch. `which`: checkpoint of that run, `last` or `best`.
    config.checkpoint = ""
    config.which = "last"
    config.model = training.model_config(arg.variant)
    config.model.width = arg.width or config.model.width
    # Fraction of a patch's tokens that is removed and has to be predicted.
    config.mask_ratio = arg.mask_ratio
    # Prediction target: `hog_binary` (HOG of the binarised ink), `hog_gray`, `hog_rgb`, `pixel`.
    config.target = arg.target
    # Orientation bins of HOG, and the side of its cells in pixels; `half_precision` rounds as the
    # published code does (docs/quirks.md, Q1).
    config.hog = ConfigDict({"num_bins": 9, "cell_size": 4, "half_precision": False})
    training.run_config(config)
    # Writers are not needed.
    config.validation.monitor = "loss"
    # For `crops`: processes that cut. 0: one a core; 1: none, the threads of the loader cut.
    config.loader.workers = 0
    # For `crops`: decoded pages that are kept, in MB, so that small collections are decoded once.
    config.loader.cache_mb = 1000
    config.optim = training.optim_config()
    a_patch = 0.2 if config.source == "store" else 0.0
    config.augment = training.augment_config(gray=a_patch, binarize=a_patch)
    {"cpu": _set_cpu, "small": _set_small, "paper": _set_paper}[arg.variant](config)
    return config


def _add_patches(config: ConfigDict, arg: ConfigDict) -> None:
    config.data = common.data_config("train")
    # `small` reads the store of finetuning, so that pages are cut once.
    config.store = common.store_config("offline" if arg.variant == "small" else "pretrain")
    config.store.binarization = arg.binarization or config.store.binarization
    # In the paper patches are cut only where handwriting was found, by Segment Anything, which
    # needs weights given by the user (docs/segment_anything.md).
    config.regions = regions_config(arg.regions or ("ink" if arg.variant == "paper" else "none"))
    # Source of the patches: the `store` (all cut once, shuffled over all pages), or random `crops`
    # of the pages, new ones in every step, as published. Set it by the argument `source`, which
    # also sets `augment`: the patches of a crop become grey or binary together.
    config.source = common.one_of(
        arg.source or ("crops" if arg.variant == "paper" else "store"), SOURCES, "source"
    )
    # For `crops`: side of the crop of a page in pixels, and most patches of a crop, cut by the
    # fields of `store` except its numbers of patches. `gray` and `binarize` are probabilities of a
    # crop.
    config.crops = ConfigDict({"size": 256, "patches_per_page": 32, "gray": 0.2, "binarize": 0.2})


def _set_cpu(config: ConfigDict) -> None:
    """The default: minutes on two CPU cores."""
    # The paper's clipping (0.02) and learning rate are for 75,000 steps. A short run learns faster
    # with higher ones, if AdamW forgets the first gradients in time, as in `small`.
    config.optim.learning_rate = 3e-3
    config.optim.b2 = 0.95
    config.optim.warmup_steps = 40
    # A short run needs many updates more than exact ones.
    config.global_batch_size = 64
    config.total_steps = 1200
    config.log_every = 100
    config.checkpoint_every = 400
    config.optim.clip_norm = 1.0


def _set_small(config: ConfigDict) -> None:
    """The recipe for some hundred pages (docs/quality.md)."""
    config.store.max_patches_per_page = common.SMALL_PATCHES_PER_PAGE
    if config.source == "store":
        config.store.update(common.SMALL_ONE_PASS)
    config.global_batch_size = 256
    config.total_steps = 8000
    config.log_every = 200
    config.checkpoint_every = 1000
    config.optim.learning_rate = 4e-3
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 1.0
    # The first gradients are a hundred times the later ones. With a longer memory of their squares
    # the run would hardly learn for hundreds of steps (docs/quality.md).
    config.optim.b2 = 0.95
    # Finetuning and retrieval see only ink.
    config.augment = training.augment_config(binarize=1.0)


def _set_paper(config: ConfigDict) -> None:
    """As published."""
    config.global_batch_size = 2048
    config.total_steps = 75_000
    config.optim.warmup_steps = 1875
    config.checkpoint_every = 2500
