"""Stage 2: NetRVLAD on the pretrained encoder, trained on pseudo labels or on writers.

    python -m saghog_jax.main --config=configs/finetune.py

Reads runs/pretrain (made by configs/pretrain.py), runs on the built-in corpus, on two CPU cores, in
about two minutes; prepares the patch store and the pseudo labels if they are not there yet; writes
runs/finetune. Labels by writer instead of clusters of SIFT descriptors:

    python -m saghog_jax.main --config=configs/finetune.py:labels=writer --workdir=runs/by_writer

Variants: `cpu` (default), `small` (for some hundred pages and a laptop, on a model that
configs/pretrain.py:small has made) and the published recipes `historical_wi`, `hisfrag20`, `grk50`,
`icdar2013` and `hisir19`, each on its data set (docs/experiments.md; from runs/pretrain made by the
variant `paper` of configs/pretrain.py). Arguments name the published experiments:

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
    # Run folder the encoder starts from; empty: from scratch.
    config.checkpoint = "runs/pretrain"
    # Its checkpoint: `last` or `best`.
    config.which = "last"
    # The model of an encoder from scratch; with `checkpoint` that run's model is taken.
    size = arg.variant if arg.variant in ("cpu", "small") else "paper"
    config.model = training.model_config(size)
    # `vit` (the model section), or the baselines `resnet20`, `resnet56`, which start from scratch.
    config.encoder = "vit"
    # Train the head alone.
    config.freeze_encoder = False
    # What of the encoder enters NetRVLAD: `cls`, `gmp` (generalised max pooling of all tokens) or
    # `foreground` (each token with at least `min_token_ink` of ink is a descriptor).
    config.descriptor = arg.descriptor
    config.min_token_ink = 0.05
    # Width of a linear map without bias between encoder and NetRVLAD, and the dropout before it;
    # 0: none, as in all published recipes.
    config.embed_dim = 0
    config.embed_dropout = 0.1
    # What is of one class: patches whose SIFT descriptors are of one `cluster` (pseudo labels), of
    # one `page`, of pages that are `linked` because SIFT finds them alike, none of which needs
    # annotation, or of one `writer`.
    config.labels = "cluster"
    config.pseudo_labels = common.pseudo_label_config()
    config.links = common.page_links_config()
    # Patches of one class in a batch, which holds global_batch_size / patches_per_class classes.
    config.patches_per_class = 16
    # What the loss compares: patches (1), or sums of the descriptors of so many patches of a page,
    # as retrieval will compare pages; a class then has patches_per_class / patches_per_bag
    # bags in a batch.
    config.patches_per_bag = 1
    # Words of SIFT, fitted on the patches, with which `embed` can put fixed descriptors of them
    # beside the learned one (its section `sift`); 0: none.
    config.sift_words = 0
    # What a page descriptor of this model is made of; `embed` takes it from the run folder.
    config.page = ConfigDict(
        {
            # Exponent of the signed power normalisation before L2 normalisation; 1 disables it.
            "power": 0.4,
            # Factors that each page is embedded at, besides `store.scale`; concatenated.
            "scales": (1.0,),
            # Fractions of the similarity of two pages that SIFT of the same patches decides: of
            # the ink of the patch, and of the page at the keypoint (size and angle detected).
            "sift": {"patch": 0.0, "keypoint": 0.0},
            # Only patches with ink under the keypoint.
            "keypoint_on_ink": True,
            # At most so many patches a page and scale; -1 keeps all.
            "max_patches_per_page": -1,
        }
    )
    # What the encoder sees: `page` (the colours of the page) or `binary` (its ink), as published.
    config.input = "binary"
    config.netrvlad = ConfigDict(
        {
            # Clusters that descriptors are softly assigned to.
            "num_clusters": 32,
            # True: NetVLAD: normalised descriptors are assigned, residuals of a cluster normalised.
            "normalized": common.one_of(arg.head, HEADS, "head") == "netvlad",
            # `kmeans` (centres of CLS features), `random`, or `checkpoint` (the whole head of
            # `checkpoint`, which a finetuning must have made).
            "init": "kmeans",
            # CLS features that k-means is fitted on, at most.
            "init_samples": 200_000,
        }
    )
    # The metric loss and its numbers.
    config.loss = ConfigDict(
        {
            # `multi_similarity`, `contrastive`, `triplet` (on similarities), `triplet_semihard` (on
            # distances).
            "kind": "multi_similarity",
            # Multi-similarity; pairs are mined within `epsilon` of the hardest.
            "alpha": 2.0,
            "beta": 40.0,
            "base": 0.2,
            "epsilon": 0.1,
            # Contrastive loss.
            "temperature": 0.1,
            # Triplet losses.
            "margin": 0.1,
            # `triplet`: each anchor counts as its own positive, by mistake, as published.
            "include_self": False,
        }
    )
    # Dropout on the tokens that enter the encoder's blocks.
    config.dropout = 0.1
    training.run_config(config)
    config.optim = training.optim_config()
    config.optim.clip_norm = 1.0
    config.optim.weight_decay = 0.01
    # The learning rate of block i of n is multiplied by layer_decay^(n - i).
    config.optim.layer_decay = 0.25
    # `layerwise` (the embedding of tokens is the lowest layer, matrices are decayed) or `published`
    # (it learns at the full rate, the CLS token never, and everything is decayed).
    config.optim.rates = "layerwise"
    config.augment = training.augment_config(erode=0.3, dilate=0.3)
    if arg.variant == "cpu":
        config.global_batch_size = 256
        config.total_steps = 160
        config.log_every = 20
        config.checkpoint_every = 80
        config.netrvlad.init_samples = 20_000
        # With an encoder that has seen little, 16 patches of each of few clusters draw everything
        # to one point; fewer patches of more and tighter clusters do not.
        config.patches_per_class = 2
        config.loss.base = 0.5
        config.optim.learning_rate = 1e-3
        config.optim.final_learning_rate = 1e-5
        config.optim.warmup_steps = 20
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


def _set_small(config: ConfigDict) -> None:
    """The recipe for some hundred pages (docs/quality.md): bags of patches of linked pages."""
    config.store.max_patches_per_page = common.SMALL_PATCHES_PER_PAGE
    config.labels = "linked"
    config.patches_per_bag = 8
    config.sift_words = 100
    config.page.power = 1.0
    config.page.scales = (1.0, 0.5, 1.4)
    config.page.sift.patch, config.page.sift.keypoint = 0.15, 0.7
    config.page.keypoint_on_ink = False
    # More change little (docs/quality.md), and enlarged pages have 20,000.
    config.page.max_patches_per_page = 2500
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
        # Everything is new, so that every layer learns at the full rate.
        config.optim.layer_decay = 1.0
