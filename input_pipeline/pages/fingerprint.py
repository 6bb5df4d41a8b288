"""Identity of page files: the SHA-256 of their bytes, remembered between runs.

Stores, masks and embeddings are identified by the contents of their pages. An edited page therefore
leads to a new store; a touched, copied or moved page does not. Reading every page at every start
would be slow. As in git, a file counts as unchanged if its size and modification time are those of
the last run.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

# A file modified this recently may change again within the clock's resolution.
SETTLED_NS = 2_000_000_000


def fingerprints(root: Path, paths: Iterable[str], cache: Path | None) -> dict[str, str]:
    """SHA-256 of each file.

    Args:
      root: folder that relative paths start from.
      paths: relative to `root`, or absolute; may repeat.
      cache: JSON file that remembers path, size, modification time and SHA-256. It is created,
        updated and replaced atomically. A lost or damaged cache costs time, nothing else. None:
        every file is read, and nothing is remembered.

    Returns:
      {path: hexadecimal SHA-256, or "" if the file cannot be read}.
    """
    known = _read_cache(cache) if cache else {}
    newest = time.time_ns() - SETTLED_NS

    def stamp_and_hash(path: str) -> tuple[str, list | None]:
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
        entries = dict(pool.map(stamp_and_hash, sorted(set(paths))))
    settled = {
        os.path.abspath(root / path): entry
        for path, entry in entries.items()
        if entry is not None and entry[1] < newest
    }
    if cache and any(known.get(path) != entry for path, entry in settled.items()):
        _write_cache(cache, {**known, **settled})
    return {path: entry[2] if entry else "" for path, entry in entries.items()}


def _read_cache(cache: Path) -> dict[str, list]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, list]) -> None:
    temporary = cache.with_name(f"{cache.name}.{secrets.token_hex(4)}")
    # The cache is optional. What is written next reports a full disk or a missing permission.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=0, sort_keys=True))
        os.replace(temporary, cache)
