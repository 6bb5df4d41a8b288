"""Sorts the pages of an embeddings folder into hands, with or without known writers.

    python -m saghog_jax.main --config=configs/hands.py

Reads runs/embed and writes runs/hands: hands.csv (page, hand, how sure, next best hand) and
hands.json (rule, threshold, numbers; metrics beside two baselines where writers are known). Takes
seconds for thousands of pages.
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "hands"
    # Embeddings folder whose pages are sorted.
    config.embeddings = "runs/embed"
    # `average`: agglomeration by average linkage. `hdbscan`: HDBSCAN of scikit-learn, which takes
    # no decisions. `linked`: connected mutual neighbours before the largest drop in similarity.
    # `first_neighbours`: pages connected by their first neighbours, a baseline without decisions.
    config.method = "average"
    # Where agglomeration stops. `labels`: at the threshold with the best BCubed F on pages of known
    # writers. `rule`: at the threshold measured on validation writers (docs/hands.md). `value`: at
    # `threshold`. `auto`: `labels` if ten writers have two or more pages, else `rule`.
    config.cut = "auto"
    # Closeness down to which hands are joined, for `cut=value`: 0 is the similarity of a page to
    # the nearest eighth of the collection, -1 that to a page in the middle. Larger: more hands.
    config.threshold = 0.25
    # A decisions.csv exported by a report: accepted pairs are put into one hand, rejected pairs
    # into different ones. Empty: none.
    config.decisions = ""
    # Pages of one known writer are put into one hand, those of different writers into different
    # ones. The metrics then say nothing.
    config.known_writers = False
    # Up to so many pages all pairs are compared, in 4 bytes each (10,000 pages: 400 MB, twice with
    # decisions). Beyond, `average` gives way to `linked`, whose memory grows with the pages alone.
    config.most_pages = 10_000
    # Samples of the bootstrap over writers, for 95 % intervals; 0: no intervals.
    config.bootstrap = 2000
    return config
