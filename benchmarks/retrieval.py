"""How fast retrieval is, against scikit-learn and Python loops as the published code has them.

    python -m benchmarks.retrieval PART [--rounds 5] [--folder FOLDER]

    python -m benchmarks.retrieval metrics       # all figures of 3,600 x 512
    python -m benchmarks.retrieval large         # all figures of 20,019 x 512 (HisFrag20's size)
    python -m benchmarks.retrieval sgr           # similarity graph re-ranking of 3,600 pages
    python -m benchmarks.retrieval search        # 100 queries, 1,000,000 x 512, the nearest 100
    python -m benchmarks.retrieval whitening     # PCA whitening of 3,600 x 51,200 to 512
    python -m benchmarks.retrieval disk          # the same of 20,019 x 51,200, from disk

The other side of a comparison is written here from the steps of the published evaluation: one query
(or row) after the other. Both are run alternately, `--rounds` times (the whitening once: the other
side takes minutes). `disk` and `search` write files of 4.1 and 2.0 GB to `--folder`, a temporary
one by default. Each part belongs in a process of its own, so that the peak memory is its own:
`python -m benchmarks.run` does so.
"""

import argparse
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from benchmarks.measure import Report, alternate, peak_memory
from saghog_jax.retrieval import rerank, whitening
from saghog_jax.retrieval.metrics import evaluate, summarize
from saghog_jax.retrieval.ranking import chunks, hide_own, score_rows
from saghog_jax.retrieval.relevant_ranks import Members, count_ranks
from saghog_jax.retrieval.search import search

KINDS = ("hard", "soft", "precision")
# Noise of the pages of a collection around the direction of their writer: the median of its factor,
# and the standard deviation of the factor's logarithm. `hard` is as fragments of real pages: a mAP
# of about .5, because some fragments are near their writer's others and some are anywhere. (The
# last relevant page of a query: on fragments of copiste_fr by SIFT-VLAD, 475 fragments at mAP .47,
# its median rank is 120, a quarter of the gallery.)
COLLECTIONS = {"easy": (2.0, 0.0), "hard": (2.4, 0.8)}
# Largest difference of a figure. The loops compare distances of scikit-learn; on the hard
# collection rounding decides about some of the nearly equal ones.
DIFFERENCE = {"easy": "<= 1e-12", "hard": "<= 1e-6"}


class Kept:
    """A function that keeps what it returned last, so that both sides can be compared."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self.result: object = None

    def __call__(self) -> None:
        self.result = self._function()


def planted(
    p: int, d: int, writers: int, seed: int = 0, noise: float = 2.0, spread: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one direction a writer, and the writers; see COLLECTIONS."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(p) % writers)
    x = rng.standard_normal((writers, d), np.float32)[labels]
    factor = noise * np.exp(spread * rng.standard_normal((p, 1), np.float32)) if spread else noise
    x += factor * rng.standard_normal((p, d), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def fill_decaying(x: np.ndarray) -> None:
    """Fills x [p, d] with descriptors whose variances fall off, so that components are definite."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((600, x.shape[1]), np.float32)
    mixing *= np.geomspace(1, 0.05, 600, dtype=np.float32)[:, None]
    for start in range(0, len(x), 1000):
        part = x[start : start + 1000]
        part[:] = rng.standard_normal((len(part), 600), np.float32) @ mixing
        part += 0.05 * rng.standard_normal(part.shape, np.float32)


def figures_by_loops(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """mAP, Top-1, hard, soft and precision@1..9 of a full distance matrix, query by query.

    The steps of the published evaluator: every row is sorted, and each figure of each k sums the
    first k answers anew (its unused classifier is left out).
    """
    distances = pairwise_distances(x)
    aps, tops = [], []
    ks = range(1, 10)
    means: dict[str, list[float]] = {f"{kind}@{k}": [] for kind in KINDS for k in ks}
    for i in range(len(x)):
        ranked = labels[np.argsort(distances[i])]
        right = [ranked[j] == labels[i] for j in ks]
        for k in ks:
            means[f"hard@{k}"].append(np.sum(right[:k]) == k)
            means[f"soft@{k}"].append(np.sum(right[:k]) >= 1)
            means[f"precision@{k}"].append(np.sum(right[:k]) / k)
        places = np.flatnonzero(ranked == labels[i])[1:]
        aps.append(sum((j + 1) / place for j, place in enumerate(places)) / len(places))
        tops.append(right[0])
    whole = {"map": aps, "top1": tops, **means}
    return {name: float(np.mean(values)) for name, values in whole.items()}


def sgr_by_rows(x: np.ndarray, k: int, gamma: float) -> np.ndarray:
    """One layer of similarity graph re-ranking, all rows at once, but row after row.

    The steps of the published code: a full ranking, the kernel and the sums of neighbours each in
    a loop over rows.
    """
    similarity = x @ x.T
    ranking = np.argsort(-similarity, axis=1)
    a = np.eye(len(x), dtype=np.float32)
    for i, order in enumerate(ranking):
        a[i, order] = np.exp(-((1 - similarity[i, order]) ** 2) / np.float32(gamma))
    a = (a + a.T) / 2
    largest = np.argpartition(-a, k, axis=1)[:, : k + 1]
    out = np.empty_like(a)
    for i in range(len(a)):
        near = largest[i, np.argsort(-a[i, largest[i]])][1:]
        out[i] = a[i] + (similarity[i, near] * a[:, near]).sum(1)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


class AnonymousPeak:
    """Peak memory of this process beyond mapped files, sampled while a block runs, in GiB."""

    def __enter__(self) -> "AnonymousPeak":
        self.start = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 2**20
        return 0.0


def run_metrics(report: Report, rounds: int, folder: Path) -> None:
    """Figures of 3,600 pages by 720 writers, of both collections."""
    for kind, (noise, spread) in COLLECTIONS.items():
        add_metrics(report, kind, *planted(3600, 512, 720, noise=noise, spread=spread), rounds)


def add_metrics(report: Report, kind: str, x: np.ndarray, labels: np.ndarray, rounds: int) -> None:
    """The figures of one collection, by this program and by loops."""
    ours = Kept(lambda: summarize(evaluate(score_rows(x), labels, ks=range(1, 10))))
    loops = Kept(lambda: figures_by_loops(x, labels))
    times = alternate(rounds, ours=ours, loops=loops)
    describe(report, kind, x, labels, ours.result["map"])
    report.add(f"{kind}: figures of 3,600 x 512", times["ours"].wall, "s")
    report.add(f"{kind}: the same, CPU", times["ours"].cpu, "s")
    report.add(f"{kind}: by loops", times["loops"].wall, "s")
    report.add(f"{kind}: by loops, CPU", times["loops"].cpu, "s")
    report.ratio(f"{kind}: loops / ours", times["loops"], times["ours"], ">= 8")
    report.ratio(f"{kind}: loops / ours, CPU", times["loops"], times["ours"], by="cpu")
    worst = max(abs(ours.result[key] - value) for key, value in loops.result.items())
    report.add(f"{kind}: largest difference of a figure", float(worst), "", DIFFERENCE[kind])


def describe(report: Report, kind: str, x: np.ndarray, labels: np.ndarray, mean: float) -> None:
    """Adds the mAP of a collection and the median rank of a query's last relevant page."""
    report.add(f"{kind}: mAP", mean, "")
    members, scores = Members(labels, np.full(len(x), -1)), score_rows(x)
    last = []
    for rows in chunks(np.arange(len(x)), len(x)):
        same_label, real = members.table(rows)
        ranks = count_ranks(hide_own(scores(rows), rows, np.full(len(x), -1)), same_label, real)
        last.append(np.where(real, ranks, 0).max(axis=1))
    median = float(np.median(np.concatenate(last)))
    report.add(f"{kind}: median rank of the last relevant page", median, f"of {len(x) - 1:,}")


def large_figures(noise: float, spread: float) -> Callable[[], dict]:
    """Figures of 20,019 pages by 1,152 writers."""
    x, labels = planted(20_019, 512, 1152, noise=noise, spread=spread)
    return lambda: summarize(evaluate(score_rows(x), labels))


def run_large(report: Report, rounds: int, folder: Path) -> None:
    """Figures of large collections, time and memory."""
    for kind, (noise, spread) in COLLECTIONS.items():
        ours = Kept(large_figures(noise, spread))
        times = alternate(rounds, warmup=0, ours=ours)
        x, labels = planted(20_019, 512, 1152, noise=noise, spread=spread)
        describe(report, kind, x, labels, ours.result["map"])
        report.add(f"{kind}: figures of 20,019 x 512", times["ours"].wall, "s", "< 15")
        report.add(f"{kind}: the same, CPU", times["ours"].cpu, "s")
        memory = peak_memory(large_figures, noise, spread)
        report.add(f"{kind}: peak memory", memory.peak / 1024, "GiB", "< 3")


def run_whitening(report: Report, rounds: int, folder: Path) -> None:
    """PCA whitening, exact on both sides."""
    x = np.empty((3600, 51_200), np.float32)
    fill_decaying(x)
    ours = Kept(lambda: whitening.apply(whitening.fit(x, 512), x))
    full = Kept(lambda: PCA(512, whiten=True, svd_solver="full").fit_transform(x))
    times = alternate(1, warmup=0, ours=ours, full=full)
    report.add("PCA whitening of 3,600 x 51,200 to 512", times["ours"].wall, "s")
    report.add("the same, CPU", times["ours"].cpu, "s")
    report.add("scikit-learn, full", times["full"].wall, "s")
    report.add("scikit-learn, full, CPU", times["full"].cpu, "s")
    report.ratio("ours / scikit-learn", times["ours"], times["full"], "<= 0.3333")
    other = full.result / np.linalg.norm(full.result, axis=1, keepdims=True)
    signs = np.sign((ours.result * other).sum(0))
    report.add("largest difference", float(np.abs(ours.result * signs - other).max()), "")


def run_disk(report: Report, rounds: int, folder: Path) -> None:
    """PCA whitening of a file larger than what is held of it."""
    path = folder / "pages.npy"
    shape = (20_019, 51_200)
    if not path.exists():
        mapped = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        fill_decaying(mapped)
        mapped.flush()
        del mapped
    x = np.load(path, mmap_mode="r")
    fit = Kept(lambda: whitening.fit(x, 512))
    apply = Kept(lambda: whitening.apply(fit.result, x))
    with AnonymousPeak() as memory:
        fitted = alternate(1, warmup=0, fit=fit)["fit"]
        applied = alternate(1, warmup=0, apply=apply)["apply"]
    for name, times in (("fit", fitted), ("apply", applied)):
        report.add(f"{name} of 20,019 x 51,200 to 512 from disk", times.wall, "s")
        report.add(f"{name}, CPU", times.cpu, "s")
    report.add("peak memory beyond the mapped file", memory.peak, "GiB", "< 12")


def run_sgr(report: Report, rounds: int, folder: Path) -> None:
    """Similarity graph re-ranking, k 2, one layer."""
    x, _ = planted(3600, 512, 720)
    ours, loops = Kept(lambda: rerank.sgr(x, 2, 1, 0.4)), Kept(lambda: sgr_by_rows(x, 2, 0.4))
    times = alternate(rounds, ours=ours, loops=loops)
    report.add("SGR of 3,600 pages", times["ours"].wall, "s")
    report.add("the same, CPU", times["ours"].cpu, "s")
    report.add("by rows", times["loops"].wall, "s")
    report.add("by rows, CPU", times["loops"].cpu, "s")
    report.ratio("rows / ours", times["loops"], times["ours"], ">= 5")
    report.ratio("rows / ours, CPU", times["loops"], times["ours"], by="cpu")
    report.add("largest difference", float(np.abs(ours.result - loops.result).max()), "", "<= 1e-5")


def run_search(report: Report, rounds: int, folder: Path) -> None:
    """Exact search in a mapped file; the warm-up compiles and reads the file."""
    path = folder / "gallery.npy"
    shape = (1_000_000, 512)
    if not path.exists():
        rng = np.random.default_rng(0)
        mapped = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        for start in range(0, shape[0], 50_000):
            mapped[start : start + 50_000] = rng.standard_normal((50_000, 512), np.float32)
        mapped.flush()
        del mapped
    gallery = np.load(path, mmap_mode="r")
    queries, _ = planted(100, 512, 20, seed=1)
    with AnonymousPeak() as memory:
        times = alternate(rounds, ours=lambda: search(queries, gallery, 100))
    report.add("100 queries, 1,000,000 x 512, 100 nearest", times["ours"].wall, "s", "< 3")
    report.add("the same, CPU", times["ours"].cpu, "s")
    report.add("peak memory beyond the mapped file", memory.peak - memory.start, "GiB", "< 1")


def main() -> None:
    """Runs one part."""
    parts = {
        "metrics": run_metrics,
        "large": run_large,
        "sgr": run_sgr,
        "search": run_search,
        "whitening": run_whitening,
        "disk": run_disk,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="for large files; they are kept if given")
    args = parser.parse_args()
    report = Report(f"retrieval-{args.part}")
    with tempfile.TemporaryDirectory(prefix="retrieval-benchmark-") as temporary:
        parts[args.part](report, args.rounds, Path(args.folder or temporary))
    report.write()


if __name__ == "__main__":
    main()
