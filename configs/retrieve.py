"""Stage 4: computes metrics, a ranked list of every page and a report from page descriptors.

    python -m saghog_jax.main --config=configs/retrieve.py

Reads runs/embed (and its subfolders `random` and `pretrained`, if they exist); takes seconds for
thousands of pages. Writes runs/retrieve: metrics.json, per_query.csv, ranking.csv, report.html.

Variants (`configs/retrieve.py:NAME`): `default`; `paper`, whitened as published (PCA fitted on the
evaluated pages, 512 components, only for more than 500 pages); `historical_wi`, `hisir19`,
`hisfrag20` and `hisfrag20_page`, the cut-offs and conventions of those competitions, without
whitening.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common

VARIANTS = ("default", "paper", "historical_wi", "hisir19", "hisfrag20", "hisfrag20_page")


def get_config(arg: str | None = None) -> ConfigDict:
    arg = common.parse_arg(arg, VARIANTS)
    config = ConfigDict()
    config.stage = "retrieve"
    # Embeddings folder that is evaluated.
    config.embeddings = "runs/embed"
    # Further embeddings folders, evaluated for comparison; `{embeddings}` is the field above. A
    # missing folder is skipped, with a note unless its place is in the folder above.
    config.compare = ("{embeddings}/random", "{embeddings}/pretrained")
    # Relevant pages are of the same `writer`, or of the same `page` of the same writer (the page
    # task of HisFrag20, where every fragment is a row with the name of its page).
    config.relevance = "writer"
    # Column of the manifest (such as `sheet` or `source`): rows with the same value as the query
    # are left out of its gallery. Empty: only the query itself is left out.
    config.exclude_group = ""
    # Cut-offs of Top-k, soft@k, hard@k and precision@k.
    config.ks = (1, 5, 10)
    # The queries that a metric is a mean over. `partners`: the queries that have a relevant page.
    # `published`: for soft, hard and precision@k all labelled queries; a query without a relevant
    # page counts as a failure. `hisir19`: as `published`, and Top-k too.
    config.convention = "partners"
    # Samples of the bootstrap over writers, for 95 % intervals; 0: no intervals.
    config.bootstrap = 2000
    config.whitening = whitening_config()
    config.rerank = rerank_config()
    # Uses the embeddings of `whitening.fit` and `rerank.choose_on` in spite of different settings
    # or weights, with a warning instead of an error.
    config.force = False
    # Ranks of each query in ranking.csv and in the report.
    config.top_k = 10
    # Also write annotations.json: the ranking as a IIIF annotation page (W3C web annotations).
    config.annotations = False
    # A decisions.csv exported by the report; its decisions are added to annotations.json.
    config.decisions = ""
    config.report = report_config()
    _set_variant(config, arg.variant)
    return config


def whitening_config() -> ConfigDict:
    """PCA whitening of the page descriptors."""
    whitening = ConfigDict()
    # `none`, `transductive` (PCA fitted on the evaluated pages) or `inductive` (on `fit`).
    whitening.mode = "none"
    # Embeddings folder of other pages by the same checkpoint, or a whitening.npz.
    whitening.fit = ""
    # Components kept; 0: the smaller of 512 and a quarter of the pages that the PCA is fitted on.
    whitening.dim = 0
    # No whitening if the number of pages or of dimensions is not larger than this.
    whitening.only_beyond = 0
    return whitening


def rerank_config() -> ConfigDict:
    """Re-ranking, a further row of the table of metrics."""
    rerank = ConfigDict()
    # `none`, `sgr` (similarity graph), `krnn` (reciprocal neighbours), `gnn` (neighbour graph) or
    # `qe` (query expansion).
    rerank.method = "none"
    # Embeddings folder of labelled training pages that choose the parameters below (the best mAP of
    # a small grid). Empty: the parameters below are used.
    rerank.choose_on = ""
    # Neighbours that are mixed into a page (all methods).
    rerank.k = 2
    # Neighbours in the first graph (gnn).
    rerank.k1 = 5
    # Propagation steps on the graph (sgr, gnn).
    rerank.layers = 1
    # Width of the similarity kernel (sgr).
    rerank.gamma = 0.4
    # Exponent of the similarity as the weight of a neighbour (qe).
    rerank.alpha = 3.0
    # Rows are updated one after the other, as published (sgr; gnn but for the order of equal
    # values: docs/quirks.md, Q32). The metrics then depend on the order of the pages, and leak
    # writers if pages are ordered by writer. For comparison only.
    rerank.sequential = False
    return rerank


def report_config() -> ConfigDict:
    """The report of `retrieve` and `search`."""
    report = ConfigDict()
    # Title of the report, such as the name of the collection. Empty: the folder of the pages.
    report.title = ""
    # Most megabytes of each file of the report, so that it can be e-mailed. Pictures of pages are
    # made to fit, in this order: all in colour; all black on white; the same, with sides of two
    # thirds; the first pages alone (those with evidence, then queries and their nearest matches);
    # thumbnails alone, with half their sides. The report says what was done.
    report.max_mb = 10.0
    # Longer side in pixels of the picture of a page, in which it is compared.
    report.picture = 1600
    # Longer side of a thumbnail in pixels.
    report.thumbnail = 256
    # Queries in a file of the report; further queries go to report_2.html and so on.
    report.queries_per_file = 400
    # Most queries in the report; if there are more, the hardest ones.
    report.max_queries = 1000
    # Most pages on the map of the collection; if there are more, an even selection.
    report.map_pages = 1000
    # Largest image that is opened for a picture, in pixels.
    report.max_pixels = 200_000_000
    report.evidence = evidence_config()
    return report


def evidence_config() -> ConfigDict:
    """Evidence of matches: heat maps of the ink, and pairs of similar patches of both pages.

    The pages of these matches are cut and described again, as in embedding.
    """
    evidence = ConfigDict()
    # Queries with evidence, the hardest first (in a search: the queries with the nearest match
    # first); 0: none.
    evidence.queries = 6
    # Page ids of the queries with evidence, instead of the hardest, such as ("w01/p1.png",).
    evidence.of = ()
    # Matches of each query, from the first rank on.
    evidence.matches = 3
    # Most pairs of similar patches of a match.
    evidence.pairs = 8
    # Run folder of the model, if it is no longer at the place that meta.json names.
    evidence.checkpoint = ""
    return evidence


def _set_variant(config: ConfigDict, variant: str) -> None:
    if variant == "paper":
        config.whitening.mode = "transductive"
        config.whitening.dim = 512
        config.whitening.only_beyond = 500
        config.convention = "published"
        config.ks = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    elif variant == "historical_wi":
        config.ks = (1, 2, 3, 4, 5, 10)
    elif variant == "hisir19":
        config.convention = "hisir19"
        config.ks = (1, 10)
    elif variant.startswith("hisfrag20"):
        config.ks = (1, 10, 100)
        config.relevance = "page" if variant == "hisfrag20_page" else "writer"
