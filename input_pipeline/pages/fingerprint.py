"""Identity of page files: the SHA-256 of their bytes, remembered between runs.

Stores, masks and embeddings are identified by the contents of their pages. An edited page therefore
leads to a new store; a touched, copied or moved page does not. Reading every page at every start
would be slow. As in git, a file counts as unchanged if its size, modification time, change time and
inode are those of the last run. Programs that edit a file in place can put the modification time
back (`exiftool -P`, `rsync -t`, a restored backup), but not the change time.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from saghog_jax.input_pipeline.files import atomic_write

# A file that changed this recently may change again within the clock's resolution.
SETTLED_NS = 2_000_000_000


def fingerprints(root: Path, paths: Iterable[str], cache: Path | None) -> dict[str, str]:
    """SHA-256 of each file.

    Args:
      root: folder that relative paths start from.
      paths: relative to `root`, or absolute; may repeat.
      cache: JSON file that remembers path, stamp (see `_stamp`) and SHA-256. It is created, updated
        and replaced atomically. A lost or damaged cache costs time, nothing else. None: every file
        is read, and nothing is remembered.

    Returns:
      {path: hexadecimal SHA-256, or "" if the file cannot be read}.
    """
    known = _read_cache(cache) if cache else {}
    newest = time.time_ns() - SETTLED_NS

    def stamp_and_hash(path: str) -> tuple[str, list | None]:
        file = root / path
        try:
            stamp = _stamp(file)
            entry = known.get(os.path.abspath(file))
            if isinstance(entry, list) and entry[:-1] == stamp:
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
        if entry is not None and max(entry[1:3]) < newest
    }
    if cache and any(known.get(path) != entry for path, entry in settled.items()):
        _write_cache(cache, {**known, **settled})
    return {path: entry[-1] if entry else "" for path, entry in entries.items()}


def folder_fingerprint(root: Path, names: list[str], cache: Path) -> str:
    """SHA-256 over the bytes of many small files, such as the ready-cut patches of a folder.

    Args:
      root: folder of the files.
      names: paths relative to `root`; their order counts.
      cache: JSON file with one entry per folder, since patches are counted in millions. The entry
        is valid as long as no name and no stamp (see `_stamp`) changed.

    Returns:
      hexadecimal.
    """
    stamps = hashlib.sha256(os.path.abspath(root).encode("utf-8", "surrogateescape"))
    newest = 0
    for name in names:
        with suppress(OSError):
            stamp = _stamp(root / name)
            stamps.update(f"{name}\n{' '.join(map(str, stamp))}\n".encode())
            newest = max(newest, *stamp[1:3])
    known = _read_cache(cache)
    key = stamps.hexdigest()
    if key in known:
        return known[key]
    settled = newest < time.time_ns() - SETTLED_NS
    contents = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for digest in pool.map(lambda name: _file_digest(root / name), names):
            contents.update(digest)
    if settled:
        _write_cache(cache, {**known, key: contents.hexdigest()})
    return contents.hexdigest()


def _stamp(file: Path) -> list[int]:
    """Size in bytes, modification time and change time in nanoseconds, and inode of a file.

    Raises:
      OSError: there is no such file.
    """
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _read_cache(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, Any]) -> None:
    # The cache is optional. What is written next reports a full disk or a missing permission.
    with suppress(OSError), atomic_write(cache, "w") as file:
        file.write(json.dumps(known, indent=0, sort_keys=True))
