"""From a folder of scans to a report, in one command.

    python -m saghog_jax.main --config=configs/scans.py --config.data.pages=FOLDER

The short form is `saghog scans FOLDER`. Finds the size of the writing and the handwriting on each
page, describes the pages by a trained model, ranks them, and writes FOLDER-saghog/report.html. With
`gallery` the pages are searched in an earlier collection. `regions` as in configs/pretrain.py;
`regions=none` takes whole pages.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.configs.retrieve import report_config


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, ("default",), regions="ink")
    config = ConfigDict()
    config.stage = "scans"
    config.data = common.data_config("")
    config.data.pages = "scans"
    # Run folder of the model: of finetune (NetRVLAD) or of pretrain (CLS). Without a value: the
    # model of the gallery, or runs/finetune.
    config.checkpoint = placeholder(str)
    # Checkpoint of the run: `last`, or `best` if the run had validation.
    config.which = "last"
    # Work folder of an earlier `scans`: the pages are searched among its pages. Empty: the pages
    # are compared with each other.
    config.gallery = ""
    # Factor by which pages are resized. 0: found from the width of the strokes, the same for all
    # pages, and kept in scans.json for later pages; for a search that of the gallery.
    config.scale = 0.0
    # Pages on which the width of the strokes is measured, chosen evenly.
    config.scale_pages = 32
    config.regions = regions_config(arg.regions)
    # Worker processes; 0: one a core.
    config.workers = 0
    # Ranks of each page in ranking.csv and in the report.
    config.top_k = 10
    config.report = report_config()
    # Open the report in the browser.
    config.open = False
    return config
