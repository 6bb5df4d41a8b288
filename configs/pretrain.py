"""Stage 1: a masked autoencoder learns handwriting from patches by predicting HOG of their ink.

    python -m saghog_jax.main --config=configs/pretrain.py

Runs on the built-in corpus, on two CPU cores, in about two minutes; prepares the patch store if it
is not there yet; writes runs/pretrain. On your own pages:

    python -m saghog_jax.main --config=configs/pretrain.py --config.data.pages=FOLDER_OR_MANIFEST \
        --workdir=runs/mine/pretrain

Variants: `cpu` (default: width 128, depth 4) and `paper` (width 512, depth 8, 28.7 million
parameters, 200 epochs of 24,000 pages: days on one GPU). Arguments name the published experiments:

    python -m saghog_jax.main --config=configs/pretrain.py:paper,mask_ratio=0.9,width=128

`mask_ratio` · `width` of the encoder · `target` hog_binary, hog_gray, hog_rgb, pixel ·
`binarization` isauvola, sauvola, su, otsu.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(
        arg,
        ("cpu", "paper"),
        mask_ratio=0.75,
        width=0,
        target="hog_binary",
        binarization="isauvola",
    )
    config = ConfigDict()
    config.stage = "pretrain"
    config.data = common.data_config("train")
    config.store = common.store_config("pretrain")
    config.store.binarization = arg.binarization
    config.model = common.model_config(arg.variant)
    config.model.width = arg.width or config.model.width
    # Share of a patch's tokens that is removed and has to be predicted.
    config.mask_ratio = arg.mask_ratio
    # What is predicted: `hog_binary` (HOG of the binarised ink), `hog_gray`, `hog_rgb`, `pixel`.
    config.target = arg.target
    # Orientation bins, and the side in pixels of the cells they are counted in.
    config.hog = ConfigDict({"num_bins": 9, "cell_size": 4})
    common.run_config(config)
    config.optim = common.optim_config()
    config.augment = common.augment_config(gray=0.2, binarize=0.2)
    if arg.variant == "paper":
        config.global_batch_size = 2048
        config.total_steps = 75_000
        config.optim.warmup_steps = 1875
        config.checkpoint_every = 2500
    else:
        # The paper's clipping (0.02) and rate are for 75,000 steps; so few learn faster with more.
        config.optim.learning_rate = 1.5e-3
        config.optim.clip_norm = 1.0
    return config
