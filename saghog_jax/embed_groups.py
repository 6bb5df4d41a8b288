"""Embedded groups of pages on disk, so that an embedding that was stopped goes on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saghog_jax.files import replacing


class Groups:
    """Results of groups of pages on disk, each whole or not there."""

    def __init__(
        self,
        folder: Path,
        made_from: str,
        pages: int,
        size: int,
        models: Sequence[tuple[str, int]],
    ) -> None:
        self._folder, self._size, self._n = folder, size, pages
        self._models = models
        mark = folder / "made_from.txt"
        if not mark.exists() or mark.read_text() != made_from:
            self.remove()
            with replacing(mark, "w") as file:
                file.write(made_from)

    @property
    def pages_done(self) -> int:
        return self._n - sum(len(self.pages_of(g)) for g in self.missing())

    def pages_of(self, group: int) -> range:
        return range(group * self._size, min(self._n, (group + 1) * self._size))

    def of_page(self, page: int) -> int:
        return page // self._size

    def missing(self) -> list[int]:
        count = -(-self._n // self._size)
        return [g for g in range(count) if not self._path(g).exists()]

    def write(
        self, group: int, sums: list[list[np.ndarray]], counts: list[int], reasons: list[str]
    ) -> None:
        arrays = {name: np.stack([s[i] for s in sums]) for i, (name, _) in enumerate(self._models)}
        with replacing(self._path(group), "wb") as file:
            np.savez(file, counts=np.array(counts), reasons=np.array(reasons, np.str_), **arrays)

    def load(self) -> tuple[np.ndarray, list[str], list[np.ndarray]]:
        """Patches a page [p], reasons of skipped pages (else empty), sums [p, d] a model."""
        counts = np.zeros(self._n, np.int64)
        reasons: list[str] = []
        sums = [np.zeros((self._n, dim), np.float32) for _, dim in self._models]
        for first in range(0, self._n, self._size):
            group = self.of_page(first)
            rows = slice(first, first + len(self.pages_of(group)))
            with np.load(self._path(group), allow_pickle=False) as file:
                counts[rows] = file["counts"]
                reasons += file["reasons"].tolist()
                for total, (name, _) in zip(sums, self._models, strict=True):
                    total[rows] = file[name]
        return counts, reasons, sums

    def remove(self) -> None:
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()

    def _path(self, group: int) -> Path:
        return self._folder / f"{group:06d}.npz"
