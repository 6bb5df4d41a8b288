"""Stage 2: NetRVLAD on the pretrained encoder, trained on pseudo labels or on writers.

    python -m saghog_jax.main --config=configs/finetune.py

Reads runs/pretrain (written by configs/pretrain.py) and the built-in corpus; takes about two
minutes on two CPU cores. Prepares the patch store and the pseudo labels if they are missing, and
writes runs/finetune. With writers as labels instead of clusters of SIFT descriptors:

    python -m saghog_jax.main --config=configs/finetune.py:labels=writer --workdir=runs/by_writer

Variants: `cpu` (default), `small` (for some hundred pages and a laptop; needs a model of
configs/pretrain.py:small) and the published recipes `historical_wi`, `hisfrag20`, `grk50`,
`icdar2013` and `hisir19`, each on its data set (docs/experiments.md; needs a model of
configs/pretrain.py:paper). Arguments name the published experiments:

    python -m saghog_jax.main --config=configs/finetune.py:hisfrag20,labels=writer,encoder=resnet20

`labels` cluster, page, linked, writer · `encoder` pretrained, frozen, scratch, resnet20, resnet56 ·
`descriptor` cls, gmp, foreground · `head` netrvlad, netvlad · `loss` multi_similarity, contrastive,
triplet, triplet_semihard · `init` kmeans, random · `regions` as in configs/pretrain.py.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common, recipes, training
from saghog_jax.configs.regions import regions_config

ENCODERS = ("pretrained", "frozen", "scratch", "resnet20", "resnet56")
HEADS = ("netrvlad", "netvlad")


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(
        arg,
        ("cpu", "small", *recipes.RECIPES),
        labels="",
        encoder="",
        descriptor="cls",
        head="netrvlad",
        loss="",
        init="",
        regions="none",
    )
    config = ConfigDict()
    config.stage = "finetune"
    config.data = common.data_config("train")
    config.store = common.store_config("offline")
    config.regions = regions_config(arg.regions)
    _add_model(config, arg)
    _add_labels(config)
    config.loss = loss_config()
    training.run_config(config)
    config.optim = optim_config()
    config.augment = training.augment_config(erode=0.3, dilate=0.3)
    if arg.variant == "cpu":
        _set_cpu(config)
    elif arg.variant == "small":
        _set_small(config)
    else:
        recipes.apply(config, arg.variant, arg.encoder)
    config.labels = arg.labels or config.labels
    config.loss.kind = arg.loss or config.loss.kind
    config.netrvlad.init = arg.init or config.netrvlad.init
    if arg.encoder:
        _set_encoder(config, common.one_of(arg.encoder, ENCODERS, "encoder"))
    return config


def _add_model(config: ConfigDict, arg: ConfigDict) -> None:
    # Run folder whose encoder the training starts from; empty: from scratch.
    config.checkpoint = "runs/pretrain"
    # Checkpoint of that run: `last` or `best`.
    config.which = "last"
    # Model of an encoder from scratch; with `checkpoint` the model of that run is used.
    size = arg.variant if arg.variant in ("cpu", "small") else "paper"
    config.model = training.model_config(size)
    # `vit` (the section `model`), or the baselines `resnet20` and `resnet56`, which start from
    # scratch.
    config.encoder = "vit"
    # Train only the head.
    config.freeze_encoder = False
    # Input of NetRVLAD: the `cls` token, `gmp` (generalised max pooling of all tokens) or
    # `foreground` (each token with at least the fraction `min_token_ink` of ink is a descriptor).
    config.descriptor = arg.descriptor
    config.min_token_ink = 0.05
    # Width of a linear map without bias between encoder and NetRVLAD (0: none, as in all published
    # recipes), and the dropout before it.
    config.embed_dim = 0
    config.embed_dropout = 0.1
    config.page = page_config()
    # Input of the encoder: `page` (the colours of the page) or `binary` (its ink), as published.
    config.input = "binary"
    config.netrvlad = netrvlad_config(arg.head)
    # Dropout of the tokens before the first block of the encoder.
    config.dropout = 0.1


def _add_labels(config: ConfigDict) -> None:
    # Patches of one class are of one `cluster` of SIFT descriptors (pseudo labels), of one `page`,
    # of `linked` pages, which are similar by SIFT (these three need no annotation), or of one
    # `writer`.
    config.labels = "cluster"
    config.pseudo_labels = common.pseudo_label_config()
    config.links = common.page_links_config()
    # Patches of one class in a batch, which holds global_batch_size / patches_per_class classes.
    config.patches_per_class = 16
    # 1: the loss compares patches. More: it compares sums of the descriptors of this many patches
    # of a page (a bag), as retrieval does; a class has patches_per_class / patches_per_bag bags in
    # a batch.
    config.patches_per_bag = 1
    # Visual words of SIFT that are fitted on the patches. `embed` needs them to concatenate SIFT
    # descriptors with the learned descriptor (its section `sift`); 0: none.
    config.sift_words = 0


def page_config() -> ConfigDict:
    """The recipe of page descriptors of this model, which `embed` reads from the run folder."""
    page = ConfigDict()
    # Exponent of the signed power normalisation before L2 normalisation; 1 disables it.
    page.power = 0.4
    # Scales at which each page is embedded, times `store.scale`. The page descriptors of all scales
    # are concatenated.
    page.scales = (1.0,)
    # Weights in the similarity of two pages, 0 to 1, of SIFT of the same patches: `patch` of the
    # ink of each patch, `keypoint` of the page at each keypoint, with its size and angle.
    page.sift = ConfigDict({"patch": 0.0, "keypoint": 0.0})
    # Compact descriptors: PCA whitening of each part to at most this many `components`, fitted to
    # fragments of the training pages when the training has ended; 0: long descriptors. Each
    # component is divided by the root of its variance plus `shrinkage` times the mean variance.
    page.compact = ConfigDict({"components": 0, "shrinkage": 1.0})
    # Weights of SIFT in compact descriptors of pages with much writing, where the section `sift`
    # holds those of pages with little writing. Both 0: the same for all pages.
    page.compact.full = ConfigDict({"patch": 0.0, "keypoint": 0.0})
    # Only patches with ink under their keypoint are kept.
    page.keypoint_on_ink = True
    # Most patches of a page and scale; -1: all.
    page.max_patches_per_page = -1
    return page


def netrvlad_config(head: str) -> ConfigDict:
    """The head: `netrvlad` or `netvlad`."""
    netrvlad = ConfigDict()
    # Clusters of the soft assignment.
    netrvlad.num_clusters = 32
    # True: NetVLAD, which normalises descriptors before the assignment, and the residuals of each
    # cluster.
    netrvlad.normalized = common.one_of(head, HEADS, "head") == "netvlad"
    # Initial centres: `kmeans` of CLS features, `random`, or `checkpoint` (the whole head of the
    # run `checkpoint`, which must be a finetuning).
    netrvlad.init = "kmeans"
    # Most CLS features for k-means.
    netrvlad.init_samples = 200_000
    return netrvlad


def loss_config() -> ConfigDict:
    """The metric loss."""
    loss = ConfigDict()
    # `multi_similarity`, `contrastive`, `triplet` (on similarities), `triplet_semihard` (on
    # distances).
    loss.kind = "multi_similarity"
    # Of the multi-similarity loss; pairs are mined within `epsilon` of the hardest pair.
    loss.alpha = 2.0
    loss.beta = 40.0
    loss.base = 0.2
    loss.epsilon = 0.1
    # Of the contrastive loss.
    loss.temperature = 0.1
    # Of the triplet losses.
    loss.margin = 0.1
    # For `triplet`: each anchor is also its own positive, the published mistake.
    loss.include_self = False
    return loss


def optim_config() -> ConfigDict:
    """AdamW with layer-wise learning rates."""
    optim = training.optim_config()
    optim.clip_norm = 1.0
    optim.weight_decay = 0.01
    # The learning rate of block i of n is multiplied by layer_decay^(n - i).
    optim.layer_decay = 0.25
    # `layerwise` (the embedding of tokens is the lowest layer; matrices are decayed) or `published`
    # (the embedding learns at the full rate, the CLS token not at all; all parameters are decayed).
    optim.rates = "layerwise"
    return optim


def _set_cpu(config: ConfigDict) -> None:
    """The default: minutes on two CPU cores."""
    config.global_batch_size = 256
    config.total_steps = 160
    config.log_every = 20
    config.checkpoint_every = 80
    config.netrvlad.init_samples = 20_000
    # The encoder has seen few patches. With 16 patches of each of few clusters all descriptors
    # collapse to one point; few patches of many tight clusters prevent this.
    config.patches_per_class = 2
    config.loss.base = 0.5
    config.optim.learning_rate = 1e-3
    config.optim.final_learning_rate = 1e-5
    config.optim.warmup_steps = 20


def _set_small(config: ConfigDict) -> None:
    """The recipe for some hundred pages (docs/quality.md): bags of patches of linked pages."""
    config.store.max_patches_per_page = common.SMALL_PATCHES_PER_PAGE
    config.store.update(common.SMALL_ONE_PASS)
    config.labels = "linked"
    config.patches_per_bag = 8
    config.sift_words = 100
    config.page.compact.update(components=340, shrinkage=0.25)
    config.page.compact.full.update(patch=0.25, keypoint=0.6)
    recipes.apply_small_page(config.page, config.page)
    config.patches_per_class = 16
    config.global_batch_size = 512
    config.total_steps = 9000
    config.log_every = 200
    config.checkpoint_every = 1000
    config.loss.kind = "contrastive"
    config.netrvlad.num_clusters = 100
    config.netrvlad.init_samples = 20_000
    config.augment = training.augment_config(
        erode=0.3, dilate=0.3, affine=0.7,
        degrees=5.0, translate=0.06, scale_low=0.85, scale_high=1.18,
    )  # fmt: skip
    config.dropout = 0.0
    config.optim.learning_rate = 2e-3
    config.optim.final_learning_rate = 1e-5
    config.optim.warmup_steps = 100
    config.optim.layer_decay = 0.8
    config.optim.weight_decay = 0.05


def _set_encoder(config: ConfigDict, name: str) -> None:
    config.freeze_encoder = name == "frozen"
    if name not in ("pretrained", "frozen"):
        config.checkpoint = ""
        config.encoder = "vit" if name == "scratch" else name
        # Nothing is pretrained, so that every layer learns at the full rate.
        config.optim.layer_decay = 1.0
