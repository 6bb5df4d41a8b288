"""Stage 2: NetRVLAD on the pretrained encoder, trained on pseudo labels or on writers.

    python -m saghog_jax.main --config=configs/finetune.py

Reads runs/pretrain (made by configs/pretrain.py), runs on the built-in corpus, on two CPU cores, in
about two minutes; prepares the patch store and the pseudo labels if they are not there yet; writes
runs/finetune. Labels by writer instead of clusters of SIFT descriptors:

    python -m saghog_jax.main --config=configs/finetune.py:labels=writer --workdir=runs/by_writer

Variants: `cpu` (default) and `paper` (the recipe for Historical-WI: 5,000 clusters, NetRVLAD 100).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("cpu", "paper"), labels="cluster")
    config = ConfigDict()
    config.stage = "finetune"
    config.data = common.data_config("train")
    config.store = common.store_config("offline")
    # Run folder the encoder starts from; empty: from scratch.
    config.init_from = "runs/pretrain"
    # The model of an encoder from scratch; with `init_from` that run's model is taken.
    config.model = common.model_config(arg.variant)
    # `vit` (the model section), or the baselines `resnet20`, `resnet56`, which start from scratch.
    config.encoder = "vit"
    # Train the head alone.
    config.freeze_encoder = False
    # What of the encoder enters NetRVLAD: `cls`, `gmp` (generalised max pooling of all tokens) or
    # `foreground` (each token with at least `min_token_ink` of ink is a descriptor).
    config.descriptor = "cls"
    config.min_token_ink = 0.05
    # `cluster` (pseudo labels, no annotation needed) or `writer`.
    config.labels = arg.labels
    config.pseudo_labels = common.pseudo_label_config()
    # Patches of one class in a batch; the batch holds global_batch_size / per_class classes.
    config.per_class = 16
    # What the encoder sees: `page` (the colours of the page) or `binary` (its ink), as published.
    config.input = "binary"
    config.netrvlad = ConfigDict(
        {
            "num_clusters": 32,
            # True: NetVLAD: normalised descriptors are assigned, residuals of a cluster normalised.
            "normalized": False,
            # `kmeans` (centres of CLS features) or `random`.
            "init": "kmeans",
            # CLS features that k-means is fitted on, at most.
            "init_samples": 200_000,
        }
    )
    config.loss = ConfigDict(
        {
            # `multi_similarity`, `triplet` (on similarities), `triplet_semihard` (on distances).
            "kind": "multi_similarity",
            # Multi-similarity; pairs are mined within `epsilon` of the hardest.
            "alpha": 2.0,
            "beta": 40.0,
            "base": 0.2,
            "epsilon": 0.1,
            # Triplet losses.
            "margin": 0.1,
        }
    )
    # Dropout on the tokens that enter the encoder's blocks.
    config.dropout = 0.1
    common.run_config(config)
    config.optim = common.optim_config()
    config.optim.clip_norm = 1.0
    config.optim.weight_decay = 0.01
    # The learning rate of block i of n is multiplied by layer_decay^(n - i).
    config.optim.layer_decay = 0.25
    # `layerwise` (the embedding of tokens is the lowest layer, matrices are decayed) or `published`
    # (it learns at the full rate, the CLS token never, and everything is decayed).
    config.optim.rates = "layerwise"
    # Probabilities a patch: grey, replaced by its binary form, ink made thicker, ink made thinner.
    config.augment = ConfigDict({"gray": 0.0, "binarize": 0.0, "erode": 0.3, "dilate": 0.3})
    if arg.variant == "paper":
        config.global_batch_size = 1024
        config.total_steps = 30_000
        config.netrvlad.num_clusters = 100
        config.pseudo_labels.num_clusters = 5000
        config.optim.learning_rate = 1e-3
        config.optim.start_learning_rate = 0.0
        config.optim.final_learning_rate = 1e-5
        config.optim.warmup_steps = 5000
        config.checkpoint_every = 1000
    else:
        config.total_steps = 500
        config.optim.learning_rate = 1e-3
        config.optim.final_learning_rate = 1e-5
        config.optim.warmup_steps = 50
        config.optim.layer_decay = 0.9
    return config
