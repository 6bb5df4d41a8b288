"""How fast retrieval is, against scikit-learn and plain Python loops.

    python -m benchmarks.retrieval metrics       # all figures of 3,600 x 512
    python -m benchmarks.retrieval large         # all figures of 20,019 x 512 (HisFrag20's size)
    python -m benchmarks.retrieval whitening     # PCA whitening of 3,600 x 51,200 to 512
    python -m benchmarks.retrieval disk          # the same of 20,019 x 51,200, from disk
    python -m benchmarks.retrieval sgr           # similarity graph re-ranking of 3,600 pages
    python -m benchmarks.retrieval search        # 100 queries, 1,000,000 x 512, the nearest 100

Each in a process of its own, so that the peak memory is its own. The other side of a comparison is
written here from the definitions, one query (or row) after the other, as published evaluations do
it; both are run alternately `--rounds` times, and the fastest of each counts. `disk` and `search`
write files of 4.1 and 2.0 GB to `--folder`.
"""

import argparse
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from saghog_jax.retrieval import rerank, whitening
from saghog_jax.retrieval.metrics import evaluate, summarize
from saghog_jax.retrieval.ranking import score_rows
from saghog_jax.retrieval.search import search


def planted(p: int, d: int, writers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one direction a writer, and the writers."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(p) % writers)
    x = rng.standard_normal((writers, d), np.float32)[labels]
    x += 2 * rng.standard_normal((p, d), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


KINDS = ("hard", "soft", "precision")


class Timed(NamedTuple):
    """The least seconds of several rounds, on the clock and of all cores, and the last result."""

    wall: float
    cpu: float
    result: object

    def __str__(self) -> str:
        return f"{self.wall:.3g} s ({self.cpu:.3g} s CPU)"


def timed(rounds: int, *sides: Callable[[], object]) -> list[Timed]:
    """Runs the sides alternately."""
    best = [Timed(np.inf, np.inf, None)] * len(sides)
    for _ in range(rounds):
        for i, side in enumerate(sides):
            wall, cpu = time.perf_counter(), time.process_time()
            result = side()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[i] = Timed(min(best[i].wall, wall), min(best[i].cpu, cpu), result)
    return best


def compared(new: Timed, old: Timed) -> str:
    """Both, and how many times as fast the first is on either clock."""
    return f"{new}, loops {old}: {old.wall / new.wall:.1f} ({old.cpu / new.cpu:.1f}) times as fast"


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


def peak_gib() -> float:
    """Peak resident memory of this process, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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


def run_metrics(rounds: int, folder: Path) -> None:
    """Figures of 3,600 pages by 720 writers."""
    x, labels = planted(3600, 512, 720)

    def ours() -> dict[str, float]:
        return summarize(evaluate(score_rows(x), labels, ks=range(1, 10)))

    new, old = timed(rounds, ours, lambda: figures_by_loops(x, labels))
    worst = max(abs(new.result[key] - value) for key, value in old.result.items())
    print(f"3,600 x 512: {compared(new, old)}")
    print(f"largest difference of {len(old.result)} figures: {worst:.1e}")


def run_large(rounds: int, folder: Path) -> None:
    """Figures of 20,019 pages by 1,152 writers."""
    x, labels = planted(20_019, 512, 1152)
    (new,) = timed(rounds, lambda: summarize(evaluate(score_rows(x), labels)))
    print(f"20,019 x 512: {new}, peak {peak_gib():.2f} GiB")


def run_whitening(rounds: int, folder: Path) -> None:
    """PCA whitening, exact on both sides."""
    x, _ = planted(3600, 51_200, 720)
    new, old = timed(
        rounds,
        lambda: whitening.apply(whitening.fit(x, 512), x),
        lambda: PCA(512, whiten=True, svd_solver="full").fit_transform(x),
    )
    other = old.result / np.linalg.norm(old.result, axis=1, keepdims=True)
    worst = np.abs(new.result @ new.result.T - other @ other.T).max()
    print(f"3,600 x 51,200 to 512: {compared(new, old)}")
    print(f"largest difference of inner products: {worst:.1e}")


def run_disk(rounds: int, folder: Path) -> None:
    """PCA whitening of a file larger than what is held of it."""
    path = folder / "pages.npy"
    shape = (20_019, 51_200)
    if not path.exists():
        rng = np.random.default_rng(0)
        mapped = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        mixing = rng.standard_normal((600, shape[1]), np.float32)
        mixing *= np.geomspace(1, 0.05, 600, dtype=np.float32)[:, None]
        for start in range(0, shape[0], 1000):
            part = mapped[start : start + 1000]
            part[:] = rng.standard_normal((len(part), 600), np.float32) @ mixing
            part += 0.05 * rng.standard_normal(part.shape, np.float32)
        mapped.flush()
        del mapped
    x = np.load(path, mmap_mode="r")
    with AnonymousPeak() as memory:
        (fit,) = timed(1, lambda: whitening.fit(x, 512))
        (out,) = timed(1, lambda: whitening.apply(fit.result, x))
    print(f"20,019 x 51,200 to 512 from disk: fit {fit}, apply {out}")
    print(f"peak {peak_gib():.1f} GiB, of which {memory.peak:.1f} beyond the mapped file")


def run_sgr(rounds: int, folder: Path) -> None:
    """Similarity graph re-ranking, k 2, one layer."""
    x, _ = planted(3600, 512, 720)
    new, old = timed(rounds, lambda: rerank.sgr(x, 2, 1, 0.4), lambda: sgr_by_rows(x, 2, 0.4))
    worst = np.abs(new.result - old.result).max()
    print(f"SGR of 3,600 pages: {compared(new, old)}; largest difference {worst:.1e}")


def run_search(rounds: int, folder: Path) -> None:
    """Exact search in a mapped file; the first round compiles and reads the file."""
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
        (first,) = timed(1, lambda: search(queries, gallery, 100))
        (again,) = timed(rounds, lambda: search(queries, gallery, 100))
    print(f"100 queries, 1,000,000 x 512, 100 nearest: {again}; the first time {first}")
    print(f"peak {memory.peak - memory.start:.2f} GiB beyond the mapped file")


def main() -> None:
    """Runs one part and prints its figures."""
    parts = {
        "metrics": run_metrics,
        "large": run_large,
        "whitening": run_whitening,
        "disk": run_disk,
        "sgr": run_sgr,
        "search": run_search,
    }
    parser = argparse.ArgumentParser(description="retrieval benchmark")
    parser.add_argument("part", choices=parts)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="for large files; they are kept if given")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, numpy {np.__version__}")
    if args.folder:
        parts[args.part](args.rounds, Path(args.folder))
        return
    with tempfile.TemporaryDirectory(prefix="retrieval-benchmark-") as folder:
        parts[args.part](args.rounds, Path(folder))


if __name__ == "__main__":
    main()
