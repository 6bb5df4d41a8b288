"""Pages that are embedded already: by this embedding before it stopped, or by an earlier one.

A page is known by its digest (`input_digests.InputDigests`), so other names, labels and orders of
pages, and further pages, need no embedding of the pages that were there before. `KEYS` in an
embeddings folder lists the digests of its rows. While an embedding is running, `parts/earlier` has
the rows of the earlier embedding: the folder itself is replaced at the end.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from saghog_jax.embedding import input_digests, journal
from saghog_jax.embedding.input_digests import InputDigests
from saghog_jax.embedding.journal import Journal, PageResult
from saghog_jax.input_pipeline.files import atomic_write

KEYS = "page_keys.json"
_EARLIER = "earlier"


def begin(parts: Path, digests: InputDigests, folders: Sequence[Path]) -> None:
    """Starts an embedding, or continues it; called by one process only.

    Args:
      parts: the folder of the journal. It is emptied if it belongs to other settings.
      folders: the embeddings folders that will be written, the main one first. If an earlier
        embedding by the same settings wrote them, its rows are kept in `parts/earlier`.
    """
    journal.begin(parts, digests.settings)
    earlier = parts / _EARLIER
    content = _read_keys(folders[0], digests.settings)
    if content is None or (earlier / KEYS).exists():
        return
    if any(input_digests.of_folder(folder) != content["input_digest"] for folder in folders):
        return
    earlier.mkdir(exist_ok=True)
    for number, folder in enumerate(folders):
        _link(folder / "embeddings.npy", earlier / f"{number}.npy")
    # Last: without this file there are no earlier rows.
    _link(folders[0] / KEYS, earlier / KEYS)


def write_keys(
    folder: Path, digests: InputDigests, kept: Sequence[int], results: Sequence[Sequence]
) -> None:
    """Writes the digests of the rows of a folder, before its meta.json.

    Args:
      kept: the pages that have a row, in the order of the rows.
      results: for each of them, a `PageResult` for each scale.
    """
    pages = [[digests.pages[i], list(views)] for i, views in zip(kept, results, strict=True)]
    content = {"settings": digests.settings, "input_digest": digests.whole, "pages": pages}
    with atomic_write(folder / KEYS, "w") as file:
        json.dump(content, file)


class Record(Journal):
    """The journal of an embedding, with the pages of the earlier one.

    A view is a page at a scale, numbered page * scales + scale; the files of the journal name it by
    the digest of its page, so that they serve another order of the pages too.

    Args:
      scales: of each page.
      describers, process: see `Journal`.
    """

    def __init__(
        self,
        folder: Path,
        digests: InputDigests,
        scales: int,
        describers: Sequence[tuple[str, int]],
        process: int = 0,
    ) -> None:
        super().__init__(folder, describers, process)
        self.digests, self._scales = digests, scales
        self._earlier = folder / _EARLIER
        content = _read_keys(self._earlier, digests.settings) or {"pages": []}
        self._earlier_rows = {page: row for row, (page, _) in enumerate(content["pages"])}
        self._earlier_results = [
            [PageResult(*view) for view in views] for _, views in content["pages"]
        ]

    @property
    def earlier(self) -> dict[int, int]:
        """Pages of the earlier embedding: its row for each page that it has."""
        rows = self._earlier_rows
        return {i: rows[page] for i, page in enumerate(self.digests.pages) if page in rows}

    def read(self) -> dict[int, PageResult]:
        """Reads the results of all finished views."""
        by_key: Mapping = super().read()
        results = {}
        for view in range(len(self.digests.pages) * self._scales):
            page, j = divmod(view, self._scales)
            row = self._earlier_rows.get(self.digests.pages[page])
            if row is not None:
                results[view] = self._earlier_results[row][j]
            elif self._key(view) in by_key:
                results[view] = by_key[self._key(view)]
        return results

    def append(self, page: int, descriptors: Sequence[np.ndarray], result: PageResult) -> None:
        """Adds a view; see `Journal.append`."""
        super().append(self._key(page), descriptors, result)

    def blocks(self, describer: int, pages: Sequence[int], at_a_time: int) -> Iterator[np.ndarray]:
        """Yields the descriptors of views; see `Journal.blocks`."""
        return super().blocks(describer, [self._key(view) for view in pages], at_a_time)

    def earlier_descriptors(self, output: int) -> np.ndarray:
        """The page descriptors of the earlier embedding in its folder number `output`, [p, d]."""
        return np.load(self._earlier / f"{output}.npy", mmap_mode="r", allow_pickle=False)

    def _key(self, view: int) -> str:
        page, j = divmod(view, self._scales)
        return f"{self.digests.pages[page]}:{j}"


def _read_keys(folder: Path, settings: str) -> dict | None:
    """The content of `KEYS`; None if it is missing, damaged, or of other settings."""
    try:
        content = json.loads((folder / KEYS).read_text())
        return content if content["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _link(source: Path, place: Path) -> None:
    """Makes another name of a file, or a copy where the file system has no such names."""
    place.unlink(missing_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
