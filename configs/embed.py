"""Stage 3: a checkpoint and pages to page descriptors that numpy opens.

    python -m saghog_jax.main --config=configs/embed.py

Reads runs/finetune, embeds the test half of the built-in corpus in well under a minute on two CPU
cores and writes runs/embed (embeddings.npy, writers.npy, pages.npy, page_ids.npy, manifest.csv,
meta.json); beside it, from the same patches, runs/embed/random and runs/embed/pretrained, the CLS
descriptors of random weights and of the pretrained encoder. On your own pages:

    python -m saghog_jax.main --config=configs/embed.py --config.data.pages=FOLDER_OR_MANIFEST \
        --config.data.split= --workdir=runs/mine/embed

Variants: `compare` (default; at most 300 patches a page, so that it is quick), `plain` (the given
checkpoint only, all patches of a page) and `small` (for configs/finetune.py:small: three sizes,
sums as they are, SIFT beside, also the patches whose keypoint lies beside the ink). `regions` as in
configs/pretrain.py.
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.cutting.patches import Rule


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("compare", "plain", "small"), regions="")
    config = ConfigDict()
    config.stage = "embed"
    config.data = common.data_config("test")
    # Fields that are not given (None) are those of the recipe in the checkpoint's run folder.
    config.store = recipe_store_config()
    config.regions = regions_config(arg.regions or "none")
    if not arg.regions:
        config.regions.backend = placeholder(str)
    small = arg.variant == "small"
    if arg.variant == "compare":
        config.store.max_patches_per_page = 300
    elif small:
        config.store.keypoint_on_ink = False
        # More change little (docs/quality.md), and enlarged pages have 20,000.
        config.store.max_patches_per_page = 2500
    # Run folder of the model: one that finetune wrote (NetRVLAD) or pretrain (CLS).
    config.checkpoint = "runs/finetune"
    # Which of its checkpoints: `last`, or `best` where it was trained with `validation`.
    config.which = "last"
    # What the encoder sees: `page`, `binary`, or `auto`, what the checkpoint was trained on.
    config.input = "auto"
    # Also embedded from the same patches, into subfolders: `random` (the encoder before any
    # training) and `pretrained` (the one finetuning started from), both by CLS, and `sift_patch`
    # and `sift_keypoint` (what `sift` puts beside the model, alone).
    config.compare = ("random", "pretrained") if arg.variant == "compare" else ()
    # Factors that each page is embedded at, besides those of `store.scale` and a manifest; the page
    # descriptors of each stand side by side. Counts of patches are those of the first.
    config.scales = (1.0, 0.5, 1.4) if small else placeholder(tuple)
    # Shares of the similarity of two pages that are those of SIFT of the same patches, whose
    # descriptors stand beside the model's; the finetuning has fitted their words (`sift_words`).
    config.sift = ConfigDict(
        {
            # Of the ink of each patch, upright.
            "patch": 0.15 if small else placeholder(float),
            # Of the page at each keypoint, at the size and angle that SIFT found there.
            "keypoint": 0.7 if small else placeholder(float),
        }
    )
    # Patches that this process's devices take at a time, and the most pages mixed in them.
    config.local_batch_size = 1024
    config.pages_per_batch = 16
    # Operands of matrix products: `float32`, `mixed` or `auto`, see configs/training.py.
    config.precision = "auto"
    # Axis sizes of the device mesh; -1 takes what is left of the devices.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    # Several processes, each with its share of the pages.
    config.distributed = common.distributed_config()
    # How the patch descriptors of a page become one: `sum`, `mean` (which differs in nothing after
    # L2), `max`, `lse` (log-sum-exp), `gmp` (generalised max pooling).
    config.pooling = "sum"
    # Ridge of generalised max pooling.
    config.gmp_lambda = 1.0
    # Page descriptors are signed powers of that, made unit vectors; 1: as they are.
    config.power = 1.0 if small else placeholder(float)
    config.patch_whitening = ConfigDict(
        {
            # Patch descriptors are PCA-whitened before they are pooled: `none`, `fit` (on patches
            # of these pages, as published for GRK-Papyri; saved) or `load` (from `file`).
            "mode": "none",
            # Components kept; 0 takes all, but at most a quarter of the patches fitted on.
            "dim": 0,
            # Patches that it is fitted on.
            "samples": 20_000,
            # patch_whitening.npz of an earlier embedding by the same checkpoint.
            "file": "",
        }
    )
    # Pages with fewer patches are embedded, but listed in few_patches.csv: too little to judge
    # (docs/retrieval.md: asking with 40 patches of one place, half of the mAP is left).
    config.few_patches = 40
    # Also written: `npz`, `parquet`, the whole folder in one file.
    config.export_formats = ()
    return config


def recipe_store_config() -> ConfigDict:
    """The section `store` without the fields of the cutting rule, which the recipe gives."""
    store = common.store_config("eval")
    for name in (field.name for field in dataclasses.fields(Rule)):
        store[name] = placeholder(type(store[name]))
    return store
