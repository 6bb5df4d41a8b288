"""How fast compact descriptors are searched: float16, 1,024 numbers a page.

    python -m benchmarks.search_compact PART [--pages N] [--rounds 5] [--folder FOLDER]

    python -m benchmarks.search_compact compact    # 1,000,000 pages: exact, and 8-bit codes first
    python -m benchmarks.search_compact milvus     # 200,000 pages: Milvus in a local file

100 queries, the 10 nearest pages, beside the exact search of the same run, which is the oracle of
recall@10. Pages are planted as whitening with shrinkage leaves them: three parts, whose variances
fall off, with ten pages around one direction a writer, so far from it that mAP is about .5. Files
(2.0 and 1.0 GB; 0.4, 0.4 and 1.6 GB with Milvus) go to `--folder`, a temporary one by default.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.costs import QUERIES, WIDTH
from benchmarks.measure import Report, alternate
from benchmarks.retrieval import AnonymousPeak, Kept
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.retrieval import int8_search, milvus_search
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.retrieval.embeddings_writer import save_embeddings
from saghog_jax.retrieval.search import search

PARTS = 341, 341, 342
A_WRITER, NEAREST = 10, 10
# Distance of a page from the direction of its writer, in standard deviations of the directions.
NOISE = 2.35
BLOCK = 20_000


def spread_of(width: int) -> np.ndarray:
    """Standard deviations of a part: variances v of a power law, shrunk to v / (v + their mean)."""
    variances = 1 / np.arange(1, width + 1)
    return np.sqrt(variances / (variances + variances.mean())).astype(np.float32)


def blocks(pages: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields the planted descriptors float32 [at most 20,000, 1,024]."""
    rng = np.random.default_rng(seed)
    spread = np.concatenate([spread_of(width) for width in PARTS])
    for start in range(0, pages, BLOCK):
        rows = min(BLOCK, pages - start)
        x = rng.standard_normal((-(-rows // A_WRITER), WIDTH), np.float32)
        x = np.repeat(x, A_WRITER, axis=0)[:rows]
        x += NOISE * rng.standard_normal((rows, WIDTH), np.float32)
        x *= spread
        parts = np.split(x, np.cumsum(PARTS)[:-1], axis=1)
        yield l2_normalize(np.concatenate([l2_normalize(part) for part in parts], axis=1))


def mean_ap(x: np.ndarray, own: np.ndarray) -> float:
    """mAP of the queries x[own] against all pages of x, ten of a writer in a row."""
    queries = np.asarray(x[own], np.float32)
    scores = np.concatenate(
        [queries @ np.asarray(x[i : i + BLOCK], np.float32).T for i in range(0, len(x), BLOCK)], 1
    )
    aps = []
    for row, values in zip(own, scores, strict=True):
        relevant = np.arange(row - row % A_WRITER, row - row % A_WRITER + A_WRITER)
        relevant = relevant[(relevant != row) & (relevant < len(x))]
        values[row] = -np.inf
        ranks = np.sort([(values > values[page]).sum() + 1 for page in relevant])
        aps.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(aps))


def recall(rows: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact nearest pages that are among the others."""
    pairs = zip(rows.tolist(), exact.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def own_rows(pages: int) -> np.ndarray:
    """Rows of the queries: evenly spaced."""
    return np.linspace(0, pages - 1, QUERIES).astype(np.int64)


def run_compact(report: Report, pages: int, rounds: int, folder: Path) -> None:
    """Exact search and search with 8-bit codes, in turn; the warm-up reads the files."""
    path = folder / f"gallery-{pages}.npy"
    if not path.exists():
        mapped = np.lib.format.open_memmap(path, "w+", np.float16, (pages, WIDTH))
        for i, block in enumerate(blocks(pages)):
            mapped[i * BLOCK : i * BLOCK + len(block)] = block
        mapped.flush()
        del mapped
    x = np.load(path, mmap_mode="r")
    own = own_rows(pages)
    queries = np.asarray(x[own], np.float32)
    what = f"100 queries, {pages:,} x 1,024 float16, 10 nearest"
    report.add("mAP of the planted pages", mean_ap(x, own), "")
    begin, cpu = time.perf_counter(), time.process_time()
    int8_search.write(folder / "index", x)
    seconds = time.perf_counter() - begin, time.process_time() - cpu
    report.add("8-bit codes are written in", seconds[0], "s")
    report.add("8-bit codes are written in, CPU", seconds[1], "s")
    index = int8_search.read(folder / "index", x)
    exact = Kept(lambda: search(queries, x, NEAREST, own))
    codes = Kept(lambda: int8_search.search(queries, x, index, NEAREST, own))
    with AnonymousPeak() as memory:
        times = alternate(rounds, exact=exact, codes=codes)
    report.add(f"{what}, exact", times["exact"].wall, "s", "< 4")
    report.add("exact, CPU", times["exact"].cpu, "s")
    report.add("8-bit codes first, then exact", times["codes"].wall, "s", "< 1.5")
    report.add("8-bit codes first, CPU", times["codes"].cpu, "s")
    report.ratio("exact / 8-bit codes, CPU", times["exact"], times["codes"], by="cpu")
    share = recall(codes.result[0], exact.result[0])
    report.add("recall@10 with 8-bit codes", share, "", ">= 0.99")
    report.add("peak memory beyond the mapped files", memory.peak - memory.start, "GiB", "< 1")


def run_milvus(report: Report, pages: int, rounds: int, folder: Path) -> None:
    """Milvus in a local file, with and without a filter."""
    names = [f"{row}.png" for row in range(pages)]
    rows = [
        Page(name, str(row // A_WRITER), "", "test", None, {"sheet": str(row // 2)})
        for row, name in enumerate(names)
    ]
    save_embeddings(folder / "e", blocks(pages), rows, folder, {}, dtype="float16")
    e = load_embeddings(folder / "e")
    own = own_rows(pages)
    report.add("mAP of the planted pages", mean_ap(e.descriptors, own), "")
    queries = np.asarray(e.descriptors[own], np.float32)
    sheets = e.column("sheet")
    groups = np.arange(pages) // 2

    def by_milvus(column: str = "") -> tuple[np.ndarray, np.ndarray]:
        file = str(folder / "milvus.db")
        values = sheets[own] if column else None
        return milvus_search.search(
            queries, e.descriptors, e, NEAREST, file, "", own, column, values
        )

    begin, cpu = time.perf_counter(), time.process_time()
    by_milvus()
    seconds = time.perf_counter() - begin, time.process_time() - cpu
    report.add(
        f"{pages:,} x 1,024 float16 inserted into Milvus, and searched once", seconds[0], "s"
    )
    report.add("inserted into Milvus, CPU", seconds[1], "s")
    sides = {
        "exact": Kept(lambda: search(queries, e.descriptors, NEAREST, own)),
        "exact_filter": Kept(
            lambda: search(queries, e.descriptors, NEAREST, own, groups[own], groups)
        ),
        "milvus": Kept(by_milvus),
        "milvus_filter": Kept(lambda: by_milvus("sheet")),
    }
    times = alternate(rounds, **sides)
    report.add("100 queries, 10 nearest, Milvus", times["milvus"].wall, "s")
    report.add("the same, each with its own filter", times["milvus_filter"].wall, "s")
    report.add("the same, exact search", times["exact"].wall, "s")
    for name in ("", "_filter"):
        found, expected = sides[f"milvus{name}"].result[0], sides[f"exact{name}"].result[0]
        words = " with a filter" if name else ""
        report.add(f"recall@10 of Milvus{words}", recall(found, expected), "", ">= 0.98")
    size = sum(file.stat().st_size for file in (folder / "milvus.db").rglob("*") if file.is_file())
    report.add("size of the database", size / 2**30, "GiB")


def main() -> None:
    """Runs one part."""
    parts = {"compact": (run_compact, 1_000_000), "milvus": (run_milvus, 200_000)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=parts)
    parser.add_argument("--pages", type=int, default=0, help="1,000,000 (200,000 with Milvus)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="for large files; they are kept if given")
    args = parser.parse_args()
    run, pages = parts[args.part]
    report = Report(f"search-{args.part}")
    with tempfile.TemporaryDirectory(prefix="search-benchmark-") as temporary:
        run(report, args.pages or pages, args.rounds, Path(args.folder or temporary))
    report.write()


if __name__ == "__main__":
    main()
