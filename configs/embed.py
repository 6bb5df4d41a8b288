"""Stage 3: computes page descriptors of pages with a trained model; numpy opens the result.

    python -m saghog_jax.main --config=configs/embed.py

Reads runs/finetune and the test half of the built-in corpus; takes well under a minute on two CPU
cores. Writes runs/embed (embeddings.npy, writers.npy, pages.npy, page_ids.npy, manifest.csv,
meta.json). The subfolders runs/embed/random and runs/embed/pretrained hold the CLS descriptors of
the same patches by random weights and by the pretrained encoder. On your own pages:

    python -m saghog_jax.main --config=configs/embed.py --config.data.pages=FOLDER_OR_MANIFEST \
        --config.data.split= --workdir=runs/mine/embed

Variants: `compare` (default; at most 300 patches a page, for speed), `plain` (only the given
checkpoint, all patches of a page) and `small` (for configs/finetune.py:small: three scales, no
power normalisation, SIFT concatenated, also patches whose keypoint is not on ink). `regions` as in
configs/pretrain.py.
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from saghog_jax.configs import common, recipes
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.cutting.patches import Rule


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("compare", "plain", "small"), regions="")
    config = ConfigDict()
    config.stage = "embed"
    config.data = common.data_config("test")
    # Fields without a value (None) are taken from the recipe in the run folder of the checkpoint.
    config.store = recipe_store_config()
    config.regions = regions_config(arg.regions or "none")
    if not arg.regions:
        config.regions.backend = placeholder(str)
    if arg.variant == "compare":
        config.store.max_patches_per_page = 300
    # Run folder of the model: of finetune (NetRVLAD) or of pretrain (CLS).
    config.checkpoint = "runs/finetune"
    # Checkpoint of the run: `last`, or `best` if the run had validation.
    config.which = "last"
    # Input of the encoder: `page`, `binary`, or `auto`: as in the training of the checkpoint.
    config.input = "auto"
    # Further descriptors of the same patches, each written into a subfolder: `random` (the encoder
    # with random weights) and `pretrained` (the encoder that finetuning started from), both by CLS;
    # `sift_patch` and `sift_keypoint` (the SIFT descriptors of the section `sift`, alone).
    config.compare = ("random", "pretrained") if arg.variant == "compare" else ()
    # Scales at which each page is embedded, times `store.scale` and the scale in the manifest. The
    # page descriptors of all scales are concatenated. Patch counts are those of the first scale.
    config.scales = placeholder(tuple)
    config.sift = sift_config()
    # Patches a step of the devices of this process, and most pages mixed in a step.
    config.local_batch_size = 1024
    config.pages_per_batch = 16
    # Operands of matrix products: `float32`, `mixed` or `auto`, see configs/training.py.
    config.precision = "auto"
    # Axis sizes of the device mesh; -1: all remaining devices.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    # Several processes, each with a part of the pages.
    config.distributed = common.distributed_config()
    # Pooling of the patch descriptors of a page: `sum`, `mean` (the same as `sum` after L2
    # normalisation), `max`, `lse` (log-sum-exp), `gmp` (generalised max pooling).
    config.pooling = "sum"
    # Ridge of generalised max pooling.
    config.gmp_lambda = 1.0
    # Exponent of the signed power normalisation before L2 normalisation; 1 disables it.
    config.power = placeholder(float)
    # Numbers of each part of a compact page descriptor, stored as float16: at most as many as the
    # finetuning has fitted (`page.compact`). 0: the long descriptors, float32.
    config.compact = placeholder(int)
    config.patch_whitening = patch_whitening_config()
    # Pages with fewer patches are embedded and also listed in few_patches.csv, because they have
    # too little text for a reliable comparison (docs/retrieval.md: queries with 40 patches of one
    # place reach half of the mAP).
    config.few_patches = 40
    # Also write the whole folder into one file: `npz`, `parquet`.
    config.export_formats = ()
    if arg.variant == "small":
        recipes.apply_small_page(config, config.store)
        config.store.update(common.SMALL_ONE_PASS)
    return config


def recipe_store_config() -> ConfigDict:
    """The section `store`; the fields of the cutting rule have no value: the recipe's are used."""
    store = common.store_config("eval")
    for name in (field.name for field in dataclasses.fields(Rule)):
        store[name] = placeholder(type(store[name]))
    return store


def sift_config() -> ConfigDict:
    """SIFT descriptors of the same patches, concatenated with the descriptor of the model.

    Their visual words are fitted in finetuning (`sift_words`).
    """
    sift = ConfigDict()
    # Weight in the similarity of two pages, 0 to 1, of upright SIFT of the ink of each patch.
    sift.patch = placeholder(float)
    # Weight in the similarity of two pages, 0 to 1, of SIFT of the page at each keypoint, with the
    # size and angle of the keypoint.
    sift.keypoint = placeholder(float)
    return sift


def patch_whitening_config() -> ConfigDict:
    """PCA whitening of patch descriptors."""
    patch_whitening = ConfigDict()
    # PCA whitening of patch descriptors before pooling: `none`, `fit` (on patches of these pages,
    # as published for GRK-Papyri; saved) or `load` (from `file`).
    patch_whitening.mode = "none"
    # Components kept; 0: all, but at most a quarter of the patches that the PCA is fitted on.
    patch_whitening.dim = 0
    # Patches that the PCA is fitted on.
    patch_whitening.samples = 20_000
    # patch_whitening.npz of an earlier embedding by the same checkpoint.
    patch_whitening.file = ""
    return patch_whitening
