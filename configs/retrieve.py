"""Stage 4: page descriptors to figures, a ranked list for every page, and a report.

    python -m saghog_jax.main --config=configs/retrieve.py

Reads runs/embed (and its subfolders `random` and `pretrained` where they are), takes seconds for
thousands of pages, and writes runs/retrieve: metrics.json, per_query.csv, ranking.csv, report.html.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "retrieve"
    # The embeddings folder that is evaluated.
    config.embeddings = "runs/embed"
    # Further embeddings folders whose figures stand beside it; `{embeddings}` is the field above.
    # One that is not there is left out, with a note.
    config.compare = ("{embeddings}/random", "{embeddings}/pretrained")
    # What makes a page relevant: the same `writer`, or the same `page` of the same writer (the page
    # task of HisFrag20, where every fragment is a row and names the page it was cut from).
    config.relevance = "writer"
    # Column of the manifest (such as `sheet` or `source`): rows that share its value with the query
    # are left out of the query's gallery. Empty: only the query itself.
    config.exclude_group = ""
    # Cut-offs of Top-k, soft@k, hard@k and precision@k.
    config.ks = (1, 5, 10)
    # `partners`: every figure averages the queries that have a partner. `published`: soft, hard and
    # precision@k count labelled pages without a partner as failures.
    config.convention = "partners"
    config.whitening = ConfigDict(
        {
            # `none`, `transductive` (PCA fitted on the evaluated pages) or `inductive` (on `fit`).
            "mode": "none",
            # Embeddings folder of other pages by the same checkpoint, or a whitening.npz.
            "fit": "",
            # Components kept; 0 takes min(512, a quarter of the pages fitted on).
            "dim": 0,
        }
    )
    # Pages a query lists in ranking.csv and in the report.
    config.top_k = 10
    config.report = ConfigDict(
        {
            # Longer side of a thumbnail in pixels.
            "thumbnail": 320,
            # Queries a file of the report; more go to report_2.html and so on.
            "queries_per_file": 200,
            # Queries in the report altogether, the hardest first where there are more.
            "max_queries": 1000,
            # Largest image that is opened for a thumbnail, in pixels.
            "max_pixels": 200_000_000,
        }
    )
    return config
