"""Checksums: `checksums/N.json` lists the SHA-256 of each file of `checkpoints/N`."""

import hashlib
import json
from pathlib import Path

from saghog_jax.input_pipeline.files import atomic_write

# Orbax writes times into this file after everything else.
_TIMES = "_CHECKPOINT_METADATA"


def write_checksums(run_folder: Path, step: int) -> None:
    """Writes the checksums of a checkpoint before its final rename, and removes outdated ones.

    Raises:
      OSError: the disk is full.
    """
    (temporary,) = (run_folder / "checkpoints").glob(f"{step}.*tmp*")
    with atomic_write(_path(run_folder, step), "w") as file:
        json.dump(_sums(temporary), file, indent=1, sort_keys=True)
    for path in (run_folder / "checksums").glob("*.json"):
        if path.stem != str(step) and not (run_folder / "checkpoints" / path.stem).is_dir():
            path.unlink(missing_ok=True)


def find_corruption(run_folder: Path, step: int) -> str:
    """Compares a checkpoint with its checksums.

    Returns:
      a description of the first difference; empty if the files are unchanged. A checkpoint without
      checksums (of another program, or copied alone) counts as unchanged.
    """
    path = _path(run_folder, step)
    if not path.exists():
        return ""
    recorded = json.loads(path.read_text())
    current = _sums(run_folder / "checkpoints" / str(step))
    for name, digest in recorded.items():
        if name not in current:
            return f"{name} is missing"
        if current[name] != digest:
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
