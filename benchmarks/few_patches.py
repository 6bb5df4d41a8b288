"""How little writing is too little: retrieval by queries of which few patches are left.

    python -m benchmarks.few_patches DATA CHECKPOINT

DATA holds the sets of benchmarks/quality.py; the *training* halves are read. CHECKPOINT is a run
folder of finetune.py:small; its learned descriptor alone is used. Every image is a query with N of
its patches; the gallery is all other images with all patches, without those of the same sheet. The
N patches are drawn from the whole image (`spread`), or are nearest to one patch (`together`, as on
a fragment). Prints mAP / Top-1 as a Markdown table.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import quality_data
from saghog_jax.embedding.describers import Checkpoint, describers_of
from saghog_jax.embedding.encoder import PageEncoder
from saghog_jax.embedding.pooler import PagePatches
from saghog_jax.evidence.attribution import Clusters, page_total
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval import metrics

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
    checkpoint = Checkpoint(Path(args.checkpoint))
    recipe = replace(checkpoint.recipe().resolved(), scales=(1.0,)).alone("netrvlad")
    encoder = PageEncoder(recipe, describers_of(checkpoint, recipe))
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_csv(quality_data.write_manifests(args.data, Path(folder), "test")["train"])
        rule, pixels = recipe.cutting_rule, recipe.max_pixels
        cuts = stream_cuts(manifest.root, manifest.pages, rule, pixels, 0)
        pages = [encoder.describe(page_cuts)[0][0] for page_cuts in cuts]
    (describer,) = encoder.describers
    clusters = Clusters(describer.centroids, describer.intra_normalize)

    def vector(page: PagePatches) -> np.ndarray:
        return recipe.join([[page_total(page, clusters)[None]]])[0]

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
