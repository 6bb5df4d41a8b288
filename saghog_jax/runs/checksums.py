"""Checksums of checkpoints: files `checksums/N.json` beside `checkpoints/N`, of all its files."""

import hashlib
import json
from pathlib import Path

from saghog_jax.input_pipeline.files import atomic_write

# Orbax writes times into this file, as the last thing it does.
_TIMES = "_CHECKPOINT_METADATA"


def write_checksums(run_folder: Path, step: int) -> None:
    """Writes those of a checkpoint that is about to get its name, and removes outlived ones.

    Raises:
      OSError: the disk is full.
    """
    (written,) = (run_folder / "checkpoints").glob(f"{step}.*tmp*")
    with atomic_write(_path(run_folder, step), "w") as file:
        json.dump(_sums(written), file, indent=1, sort_keys=True)
    for path in (run_folder / "checksums").glob("*.json"):
        if path.stem != str(step) and not (run_folder / "checkpoints" / path.stem).is_dir():
            path.unlink(missing_ok=True)


def damage(run_folder: Path, step: int) -> str:
    """What is wrong with a checkpoint; empty where its files are those that were written.

    A checkpoint without checksums (made elsewhere, or copied alone) is taken as whole.
    """
    path = _path(run_folder, step)
    if not path.exists():
        return ""
    wanted = json.loads(path.read_text())
    found = _sums(run_folder / "checkpoints" / str(step))
    for name, digest in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} has changed"
    return ""


def _path(run_folder: Path, step: int) -> Path:
    return run_folder / "checksums" / f"{step}.json"


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.parent == folder and path.name == _TIMES:
            continue
        with path.open("rb") as file:
            sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
