"""The built-in corpus: pages of synthetic handwriting, generated once from a seed.

Every writer has individual letters and traits (synthetic_hand.py). Every page has individual text
(synthetic_text.py), paper, ink, light and noise (synthetic_page.py), from random streams that are
independent of the writer.
"""

import csv
import hashlib
import itertools
import json
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from saghog_jax.input_pipeline.datasets import synthetic_hand, synthetic_page
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores

# Part of the digest; increased whenever pages would be drawn differently.
FORMAT = 2
# Fast compression; without a filter the files are smaller.
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
# Pages per worker process; starting a process for fewer pages does not pay off.
PAGES_PER_WORKER = 16
# Temporary folders of killed writes are removed after this many seconds.
STALE = 3600


@dataclass(frozen=True)
class Corpus:
    """Size and seed of a corpus.

    Attributes:
      train_writers, test_writers: number of writers of split=train, and of other writers of
        split=test.
      pages: number of pages per writer, at least 1.
      width, height: of a page in pixels, at least 100.
      lines: largest number of lines, at least 1; each page has up to three lines fewer.
      seed: of the whole corpus.

    Raises:
      ValueError: a number is negative or smaller than stated above.
    """

    train_writers: int = 40
    test_writers: int = 20
    pages: int = 4
    width: int = 900
    height: int = 600
    lines: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pages", "lines"):
            if getattr(self, name) < 1:
                raise ValueError(f"Corpus.{name}={getattr(self, name)}, it must be at least 1")
        for name in ("train_writers", "test_writers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"Corpus.{name}={getattr(self, name)}, it must not be negative")
        if min(self.width, self.height) < 100:
            raise ValueError(f"Corpus page of {self.width}x{self.height} px, each side needs 100")

    @property
    def writers(self) -> int:
        """Number of writers of both splits."""
        return self.train_writers + self.test_writers

    @property
    def digest(self) -> str:
        """12 hexadecimal digits over all inputs of the pages."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


DEFAULT = Corpus()


def ensure(cache: Path, corpus: Corpus = DEFAULT, workers: int = 0) -> Path:
    """Writes the corpus below `cache`, unless it exists already.

    Args:
      cache: the corpus becomes its subfolder `synthetic-<digest>`.
      corpus: size and seed.
      workers: number of processes, 0: one per core; the bytes do not depend on this number.

    Returns:
      path of the manifest, a CSV with the columns path, writer, page, split.
    """
    folder = Path(cache) / f"synthetic-{corpus.digest}"
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):
        # Another process may remove the folder at the same time.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        write_corpus(temporary, corpus, workers)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process has written the same bytes first, or the existing folder is damaged.
            if not manifest.is_file():
                shutil.rmtree(folder)
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def write_corpus(folder: Path, corpus: Corpus, workers: int = 0) -> None:
    """Writes `folder/pages/*.png` and then `folder/manifest.csv`; not atomic, see `ensure`.

    Args:
      folder: an existing folder.
      corpus: size and seed.
      workers: number of processes, 0: one per core; the bytes do not depend on this number.
    """
    (folder / "pages").mkdir(exist_ok=True)
    rows = manifest_rows(corpus)
    workers = workers or min(usable_cores(), len(rows) // PAGES_PER_WORKER)
    for _ in run_jobs(partial(_write_page, folder, corpus), range(len(rows)), workers):
        pass
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "writer", "page", "split"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def manifest_rows(corpus: Corpus) -> list[dict[str, str]]:
    """Rows of the manifest; row n describes page n."""
    rows = []
    for writer, page in itertools.product(range(corpus.writers), range(corpus.pages)):
        name = f"w{writer + 1:03d}"
        rows.append(
            {
                "path": f"pages/{name}-p{page + 1}.png",
                "writer": name,
                "page": f"p{page + 1}",
                "split": "train" if writer < corpus.train_writers else "test",
            }
        )
    return rows


def _write_page(folder: Path, corpus: Corpus, number: int) -> None:
    (folder / manifest_rows(corpus)[number]["path"]).write_bytes(encode_page(corpus, number))


def encode_page(corpus: Corpus, number: int) -> bytes:
    """Page `number` of the corpus as PNG; a pure function of its arguments."""
    image = render_page(corpus, number)
    return cv2.imencode(".png", image[..., ::-1], PNG)[1].tobytes()


def render_page(corpus: Corpus, number: int) -> np.ndarray:
    """Page `number` of the corpus, uint8 [height, width, 3], RGB."""
    # Separate streams: paper, light and noise are independent of the writer and the text.
    hand, text, paper = (
        _stream(corpus, kind, at)
        for kind, at in (("hand", number // corpus.pages), ("text", number), ("paper", number))
    )
    shape = (corpus.height, corpus.width)
    writer = synthetic_hand.on_page(synthetic_hand.draw_hand(hand), text)
    path = synthetic_page.lay_out(writer, shape, corpus.lines, text)
    ink = synthetic_page.draw_ink(path, writer, shape, text)
    return synthetic_page.draw_page(ink, paper)


def _stream(corpus: Corpus, kind: str, number: int) -> np.random.Generator:
    key = ("hand", "text", "paper").index(kind)
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(corpus.seed, spawn_key=(key, number)))
    )
