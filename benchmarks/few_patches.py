"""How little writing is too little: retrieval by queries of which few patches are left.

    python -m benchmarks.few_patches DATA CHECKPOINT

DATA holds the sets of benchmarks/quality.py, of which the *training* halves are read; CHECKPOINT is
a run folder of finetune.py:small. Every image asks with N of its patches, all others answer with
all of theirs (of one sheet are left out). The N are drawn from the whole image (`spread`), or are
those nearest to one of them (`together`, as on a fragment). Prints mAP / Top-1 as a Markdown table.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import quality_data
from saghog_jax.configs import embed
from saghog_jax.embedding.describer import Describer
from saghog_jax.embedding.describers import load_models
from saghog_jax.evidence.attribution import Clusters, PagePatches, page_total
from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm

COUNTS = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200)
WAYS = ("spread", "together")


def some(page: PagePatches, count: int, way: str, rng: np.random.Generator) -> PagePatches:
    """`count` patches of a page."""
    n = len(page.place)
    if way == "spread":
        rows = rng.permutation(n)[:count]
    else:
        away = np.square(page.place - page.place[rng.integers(n)]).sum(1)
        rows = np.argsort(away, kind="stable")[:count]
    return PagePatches(page.x[rows], page.assignment[rows], page.place[rows], page.side)


def main() -> None:
    """Cuts and describes all pages once, then asks with ever more patches."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint")
    args = parser.parse_args()
    config = embed.get_config("small")
    config.checkpoint = args.checkpoint
    rule = Rule.from_config(config.store)
    (model,) = load_models(config)
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_csv(quality_data.write_manifests(args.data, Path(folder), "test")["train"])
        cuts = stream_cuts(
            manifest.root, manifest.pages, rule, config.data.max_pixels, config.store.workers, None
        )
        describer = Describer(model)
        pages = [describer.page(cut, rule.patch_size) for (cut,) in cuts]
    clusters = Clusters(model.centroids, model.intra_normalize)

    def vector(page: PagePatches) -> np.ndarray:
        return l2_normalize(power_norm(page_total(page, clusters), config.power))

    gallery = np.stack([vector(page) for page in pages])
    columns = {key: np.array([p.extra[key] for p in manifest.pages]) for key in ("set", "sheet")}
    writers = np.array([page.writer for page in manifest.pages])
    print("| patches | " + " | ".join(f"{s}, {w}" for s in quality_data.SETS for w in WAYS) + " |")
    print("|---|" + "---|" * len(quality_data.SETS) * len(WAYS))
    for count in (*COUNTS, max(len(page.place) for page in pages)):
        asked = {}
        for way in WAYS:
            rng = np.random.default_rng(0)
            asked[way] = np.stack([vector(some(page, count, way, rng)) for page in pages])
        cells = []
        for name in quality_data.SETS:
            rows = np.flatnonzero(columns["set"] == name)
            codes = [metrics.encode_labels(c[rows]) for c in (writers, columns["sheet"])]
            for way in WAYS:
                x, y = asked[way][rows], gallery[rows]
                e = metrics.evaluate(lambda r, x=x, y=y: x[r] @ y.T, *codes, ks=(1,))
                found = metrics.summarize(e)
                cells.append(f"{found['map']:.3f} / {found['top1']:.3f}".replace("0.", "."))
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
