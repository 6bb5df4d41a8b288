"""Finds the handwriting on pages and shows it, before anything is cut.

    python -m saghog_jax.main --config=configs/regions.py

Runs on the built-in corpus, on two CPU cores, in a few seconds; writes runs/regions: the masks,
pages.csv (what became of each page, and why) and report.html, a contact sheet of pages with their
masks. On your own pages, and with other ways of finding handwriting than `ink` (docs/regions.md):

    python -m saghog_jax.main --config=configs/regions.py --config.data.pages=FOLDER_OR_MANIFEST \
        --config.regions.backend=xml --workdir=runs/mine/regions

The stages that cut patches make masks themselves where they are missing, and take these where the
section `regions` of their config is the same.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("ink",))
    config = ConfigDict()
    config.stage = "regions"
    config.data = common.data_config("")
    config.regions = common.regions_config("ink")
    # Pages on the contact sheet, at most: first those without a mask that could be used, then
    # others, evenly picked.
    config.sheet_pages = 200
    # Longer side of a page there, in pixels.
    config.sheet_side = 480
    return config
