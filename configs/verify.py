"""Checks patch stores: counts, checksums, every record and every set of pseudo labels readable.

    python -m saghog_jax.main --config=configs/verify.py

Reads all stores in runs/prepare at the speed of the disk, writes nothing, and ends with exit status
2 and the damaged files named if anything is wrong.
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
