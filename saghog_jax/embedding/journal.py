"""The journal of an embedding: finished pages, on disk, so that a killed embedding can continue.

Each process appends to its own files: PROCESS.jsonl, one line for each page at each scale, and
PROCESS-DESCRIBER.f32, one row of float32 for each line. A line is written after its rows and holds
their checksum: a half-written page counts as not embedded. The number of processes may change when
an embedding continues.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from saghog_jax.input_pipeline.files import atomic_write


class PageResult(NamedTuple):
    """A page besides its descriptors.

    patches: number of its patches.
    ink: ink pixels of all patches; a pixel in two patches counts twice.
    reason: why the page was skipped; empty if it was not.
    """

    patches: int
    ink: int
    reason: str


def begin(folder: Path, input_digest: str) -> None:
    """Makes the folder, emptied if it belongs to another input; called by one process only.

    Args:
      input_digest: of everything that decides the rows, besides the names of pages in the journal.
    """
    mark = folder / "input_digest.txt"
    if not mark.exists() or mark.read_text() != input_digest:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_write(mark, "w") as file:
            file.write(input_digest)


class Journal:
    """Pooled descriptors of pages, and what was counted on them, in a folder.

    Args:
      describers: name and width of each.
      process: number of this process.
    """

    def __init__(
        self, folder: Path, describers: Sequence[tuple[str, int]], process: int = 0
    ) -> None:
        self._folder, self._describers = folder, list(describers)
        self._process = process
        self._places: dict[int | str, tuple[int, int, PageResult]] = {}
        self._files: list[IO] = []

    def read(self) -> dict[int | str, PageResult]:
        """Reads the results of all processes, by page."""
        self._places = {}
        for process in sorted(int(path.stem) for path in self._folder.glob("*.jsonl")):
            for row, (page, result) in enumerate(self._lines(process)):
                # Two pages of one name, such as copies, share the first row.
                self._places.setdefault(page, (process, row, result))
        return {page: result for page, (_, _, result) in self._places.items()}

    def append(
        self, page: int | str, descriptors: Sequence[np.ndarray], result: PageResult
    ) -> None:
        """Adds a page by its number or name: the descriptors of each describer, and its counts."""
        if not self._files:
            self._open()
        rows = [np.ascontiguousarray(x, np.float32) for x in descriptors]
        for file, row in zip(self._files[1:], rows, strict=True):
            file.write(row.data)
            file.flush()
        line = {"page": page, **result._asdict(), "crc": _checksum(rows)}
        self._files[0].write((json.dumps(line) + "\n").encode())
        self._files[0].flush()

    def close(self) -> None:
        """Closes the files of `append`."""
        for file in self._files:
            file.close()
        self._files = []

    def blocks(
        self, describer: int, pages: Sequence[int | str], at_a_time: int
    ) -> Iterator[np.ndarray]:
        """Yields the descriptors of `pages` by one describer: float32 [at most at_a_time, d]."""
        name, width = self._describers[describer]
        processes = {self._places[page][0] for page in pages}
        rows = {process: self._rows(process, name, width) for process in processes}
        for start in range(0, len(pages), at_a_time):
            part = [self._places[page] for page in pages[start : start + at_a_time]]
            yield np.stack([rows[process][row] for process, row, _ in part])

    def _lines(self, process: int) -> Iterator[tuple[int | str, PageResult]]:
        """The whole lines of a process, up to the first that is damaged."""
        files = [self._rows(process, *model) for model in self._describers]
        rows_written = min((len(rows) for rows in files), default=0)
        with (self._folder / f"{process}.jsonl").open("rb") as file:
            for row, text in enumerate(file):
                try:
                    line = json.loads(text)
                    crc, page = line.pop("crc"), line.pop("page")
                    result = PageResult(**line)
                except (ValueError, KeyError, TypeError):
                    return
                if row >= rows_written or not text.endswith(b"\n"):
                    return
                if _checksum([rows[row] for rows in files]) != crc:
                    return
                yield page, result

    def _rows(self, process: int, name: str, width: int) -> np.ndarray:
        path = self._folder / f"{process}-{name}.f32"
        count = path.stat().st_size // (4 * width) if path.exists() else 0
        if not count:
            return np.zeros((0, width), np.float32)
        return np.memmap(path, np.float32, "r", shape=(count, width))

    def _open(self) -> None:
        """Opens this process's files behind their last whole line."""
        self._folder.mkdir(parents=True, exist_ok=True)
        journal = self._folder / f"{self._process}.jsonl"
        whole = sum(1 for _ in self._lines(self._process)) if journal.exists() else 0
        at = 0
        if whole:
            with journal.open("rb") as file:
                at = sum(len(next(file)) for _ in range(whole))
        ends = [(journal, at)]
        for name, width in self._describers:
            ends.append((self._folder / f"{self._process}-{name}.f32", 4 * width * whole))
        for path, end in ends:
            file = path.open("ab")
            file.truncate(end)
            self._files.append(file)


def _checksum(rows: Sequence[np.ndarray]) -> int:
    crc = 0
    for row in rows:
        crc = zlib.crc32(np.ascontiguousarray(row).data, crc)
    return crc
