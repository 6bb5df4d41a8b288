"""New pages against pages that are embedded already: who wrote like this?

    python -m saghog_jax.main --config=configs/search.py

Searches runs/embed for every page of runs/embed (each page finds the others) and writes
runs/search: matches.csv, search.json, report.html; seconds for thousands of pages, on one device.
For pages of your own, embed them with the same checkpoint, then name both folders:

    python -m saghog_jax.main --config=configs/embed.py --workdir=runs/mine/embed \
        --config.data.pages=FOLDER_OR_MANIFEST --config.data.split=
    python -m saghog_jax.main --config=configs/search.py --workdir=runs/mine/search \
        --config.queries=runs/mine/embed
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.configs.retrieve import report_config


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "search"
    # Embeddings folder of the pages that ask.
    config.queries = "runs/embed"
    # Embeddings folder of the pages that answer, by the same checkpoint.
    config.gallery = "runs/embed"
    # Embeddings folder with writers, by the same checkpoint, that says how many pairs at a distance
    # were by one writer; `{gallery}` is the field above, empty: nothing is said.
    config.calibrate = "{gallery}"
    # Column of the manifests (such as `sheet` or `source`): pages that share its value with the
    # query are left out, from the answers and from the calibration. Empty: only the page itself.
    config.exclude_group = ""
    # A whitening.npz that `retrieve` wrote, applied to all of them; empty: none.
    config.whitening = ""
    # Pages listed for each query.
    config.top_k = 10
    # `exact`: every page is looked at, in chunks on the device. `faiss`: approximate, from an index
    # (extra `faiss`), for more than a few million pages.
    config.backend = "exact"
    config.faiss = ConfigDict(
        {
            # Cells of the index (0: 4 times the square root of the pages) and how many of them a
            # query looks into.
            "lists": 0,
            "probes": 32,
            # File that keeps the index for the next search; empty: faiss.index in the workdir.
            "index": "",
        }
    )
    # Also written: annotations.json, the matches as a IIIF annotation page (W3C web annotations).
    config.annotations = False
    # A decisions.csv that the report exported; its decisions go into annotations.json.
    config.decisions = ""
    config.report = report_config()
    return config
