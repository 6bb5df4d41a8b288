"""Cuts pages into patch stores, and clusters descriptors into pseudo labels.

    python -m saghog_jax.main --config=configs/prepare.py

Reads the built-in corpus; takes about a minute on two CPU cores (one core cuts two to five pages of
600 x 900 pixels a second). Writes runs/prepare: one store of about 0.5 GB for pretraining, and one
for finetuning with pseudo labels. A build that was stopped continues where it was; finished stores
are reused. On your own pages, first a look at what would be done:

    python -m saghog_jax.main --config=configs/prepare.py --config.data.pages=FOLDER_OR_MANIFEST \
        --config.dry_run=True

Variants: `cpu` (default: 3,000 clusters) and `paper` (5,000 clusters). `:only=pretrain` or
`:only=offline` makes one of the two stores. `:regions=ink` cuts patches only where ink was found.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config

RULES = ("pretrain", "offline")


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("cpu", "paper"), only="", regions="none")
    if arg.only and arg.only not in RULES:
        raise ValueError(f"only={arg.only!r} is not a store, known: {', '.join(RULES)}")
    config = ConfigDict()
    config.stage = "prepare"
    config.data = common.data_config("train")
    # One section a store. Pretraining and finetuning find their store by the same fields.
    config.stores = ConfigDict(
        {rule: common.store_config(rule) for rule in RULES if arg.only in ("", rule)}
    )
    config.regions = regions_config(arg.regions)
    # Pseudo labels of the store `offline`.
    config.pseudo_labels = common.pseudo_label_config()
    if arg.variant == "paper":
        config.pseudo_labels.num_clusters = 5000
    # Pipeline options of Apache Beam, which then replaces the pool of processes; the output is the
    # same, to the byte. For example `--runner=DirectRunner --direct_running_mode=multi_processing
    # --direct_num_workers=8`; for clusters see input_pipeline/processes/beam.py.
    config.beam = ""
    # Only print how the pages are understood, which pages would be skipped and why, and the size of
    # the stores. Writes nothing but the built-in corpus.
    config.dry_run = False
    # Pages that a dry run cuts to estimate the sizes.
    config.dry_run_samples = 16
    return config
