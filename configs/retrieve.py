"""Stage 4: page descriptors to figures, a ranked list for every page, and a report.

    python -m saghog_jax.main --config=configs/retrieve.py

Reads runs/embed (and its subfolders `random` and `pretrained` where they are), takes seconds for
thousands of pages, and writes runs/retrieve: metrics.json, per_query.csv, ranking.csv, report.html.

Variants (`configs/retrieve.py:NAME`): `default`; `paper`, whitened as published (PCA fitted on the
evaluated pages, 512 components, only beyond 500 pages); `historical_wi`, `hisir19`, `hisfrag20` and
`hisfrag20_page`, the cut-offs and conventions of those competitions, without whitening.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common

VARIANTS = ("default", "paper", "historical_wi", "hisir19", "hisfrag20", "hisfrag20_page")


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, VARIANTS)
    config = ConfigDict()
    config.stage = "retrieve"
    # The embeddings folder that is evaluated.
    config.embeddings = "runs/embed"
    # Further embeddings folders whose figures stand beside it; `{embeddings}` is the field above.
    # One that is not there is left out, with a note unless it would lie in that folder.
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
    # precision@k count labelled pages without a partner as failures; `hisir19`: Top-k too.
    config.convention = "partners"
    # Samples of the bootstrap over writers behind the 95 % intervals; 0: no intervals.
    config.bootstrap = 2000
    # PCA whitening of the page descriptors.
    config.whitening = ConfigDict(
        {
            # `none`, `transductive` (PCA fitted on the evaluated pages) or `inductive` (on `fit`).
            "mode": "none",
            # Embeddings folder of other pages by the same checkpoint, or a whitening.npz.
            "fit": "",
            # Components kept; 0 takes min(512, a quarter of the pages fitted on).
            "dim": 0,
            # Left out where pages or dimensions are not more than this.
            "only_beyond": 0,
        }
    )
    # A further row of the table, beside the plain one: `none`, `sgr` (similarity graph), `krnn`
    # (reciprocal neighbours), `gnn` (neighbour graph) or `qe` (query expansion).
    config.rerank = ConfigDict(
        {
            "method": "none",
            # Embeddings folder of labelled training pages on which the parameters below are chosen
            # (the best mAP of a small grid). Empty: they are taken as they stand here.
            "choose_on": "",
            # Neighbours that are mixed into a page (all methods).
            "k": 2,
            # Neighbours in the first graph (gnn).
            "k1": 5,
            # Times the graph is spread (sgr, gnn).
            "layers": 1,
            # Width of the similarity kernel (sgr).
            "gamma": 0.4,
            # Trust in near neighbours over far ones (qe).
            "alpha": 3.0,
            # Rows are updated one after the other, as published (sgr, gnn): the figures then hang
            # on the order of the pages and leak writers where it is by writer. For comparison only.
            "sequential": False,
        }
    )
    # Pages a query lists in ranking.csv and in the report.
    config.top_k = 10
    # Also written: annotations.json, the ranking as a IIIF annotation page (W3C web annotations).
    config.annotations = False
    # A decisions.csv that the report exported; its decisions go into annotations.json.
    config.decisions = ""
    config.report = report_config()
    if arg.variant == "paper":
        config.whitening.mode = "transductive"
        config.whitening.dim = 512
        config.whitening.only_beyond = 500
        config.convention = "published"
        config.ks = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    elif arg.variant == "historical_wi":
        config.ks = (1, 2, 3, 4, 5, 10)
    elif arg.variant == "hisir19":
        config.convention = "hisir19"
        config.ks = (1, 10)
    elif arg.variant.startswith("hisfrag20"):
        config.ks = (1, 10, 100)
        config.relevance = "page" if arg.variant == "hisfrag20_page" else "writer"
    return config


def report_config() -> ConfigDict:
    """The report of `retrieve` and `search`."""
    report = ConfigDict()
    # Longer side of a thumbnail in pixels.
    report.thumbnail = 256
    # Queries a file of the report; more go to report_2.html and so on.
    report.queries_per_file = 400
    # Queries in the report altogether, the hardest first where there are more.
    report.max_queries = 1000
    # Pages on the map of the collection, at most; evenly picked.
    report.map_pages = 1000
    # Largest image that is opened for a thumbnail, in pixels.
    report.max_pixels = 200_000_000
    # What makes a match: ink heat maps, and like patches of both pages side by side. The pages of
    # those matches are cut and described once more, as embedding does it.
    report.evidence = ConfigDict(
        {
            # Queries that get evidence, the hardest first (in a search: those whose nearest answer
            # is nearest); 0: none.
            "queries": 6,
            # Page ids of queries that get evidence in their place, such as ("w01/p1.png",).
            "of": (),
            # Matches of each query, from the first.
            "matches": 3,
            # Pairs of like patches a match, at most.
            "pairs": 8,
            # Run folder of the model, where it is no longer the one that meta.json names.
            "checkpoint": "",
            # Longer side in pixels of the pictures of these pages, in place of `thumbnail`.
            "picture": 640,
        }
    )
    return report
