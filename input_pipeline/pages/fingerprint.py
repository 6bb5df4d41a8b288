"""Identity of page files: the SHA-256 of their bytes, remembered between runs.

A store is named after the contents of its pages, so that editing a page makes another store, and
touching, copying or moving pages does not. Reading every page at every start would be slow: as git
does, a file whose size and modification time are those of the last run is taken for unchanged.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from saghog_jax.input_pipeline.files import atomic_write

# A file modified this recently may change again within the clock's resolution.
SETTLED_NS = 2_000_000_000


def fingerprints(root: Path, paths: Iterable[str], cache: Path) -> dict[str, str]:
    """SHA-256 of each file.

    Args:
      root: folder of the paths.
      paths: relative to `root`; may repeat.
      cache: JSON file that remembers path, size, modification time and SHA-256; made, updated
        and replaced atomically here. A lost or damaged cache costs time, nothing else.

    Returns:
      {path: hexadecimal SHA-256, or "" if the file cannot be read}.
    """
    known = _read_cache(cache)
    newest = time.time_ns() - SETTLED_NS

    def look(path: str) -> tuple[str, list | None]:
        file = root / path
        try:
            stat = file.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            entry = known.get(os.path.abspath(file))
            if entry is not None and entry[:2] == stamp:
                return path, entry
            with file.open("rb") as opened:
                return path, [*stamp, hashlib.file_digest(opened, "sha256").hexdigest()]
        except OSError:
            return path, None

    with ThreadPoolExecutor() as pool:
        found = dict(pool.map(look, sorted(set(paths))))
    settled = {
        os.path.abspath(root / path): entry
        for path, entry in found.items()
        if entry is not None and entry[1] < newest
    }
    if any(known.get(path) != entry for path, entry in settled.items()):
        _write_cache(cache, {**known, **settled})
    return {path: entry[2] if entry else "" for path, entry in found.items()}


def _read_cache(cache: Path) -> dict[str, list]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, list]) -> None:
    # Whoever builds next to it reports a full disk or a missing permission.
    with suppress(OSError), atomic_write(cache, "w") as file:
        file.write(json.dumps(known, indent=0, sort_keys=True))
