"""Checks patch stores: counts, checksums, and that all records and pseudo labels are readable.

    python -m saghog_jax.main --config=configs/verify.py

Reads all stores in runs/prepare at the speed of the disk and writes nothing. If a file is damaged,
the message names it and the exit status is 2.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "verify"
    # A store, or a folder of stores.
    config.stores = "runs/prepare"
    return config
