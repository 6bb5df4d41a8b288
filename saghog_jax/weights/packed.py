"""Packed models: a run folder in few small files that can be passed on, and the models in the box.

A packed model is a folder that stands wherever a run folder of finetuning is read: config.json and
recipe.json as in the run folder, model.safetensors (float16 variables, float32 visual words),
projection.safetensors (8-bit components of the compact descriptors, each with a float32 factor) and
digests.json, the SHA-256 of each file.

Axis letters: k components of a part, D width of a part.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write

MODEL, PROJECTION, DIGESTS = "model.safetensors", "projection.safetensors", "digests.json"
# Packed models that are part of the installation, each in a folder of its name.
ASSETS = Path(__file__).parent / "assets"
_WORDS = "sift_words/"


def names_in_the_box() -> list[str]:
    """Names of the models that are part of the installation."""
    return sorted(folder.name for folder in ASSETS.glob("*") if is_packed(folder))


def model_folder(name: str | os.PathLike) -> Path:
    """The folder of a model: the path that is given, or a model in the box by its name."""
    path = Path(name)
    return ASSETS / path if str(name) in names_in_the_box() and not path.exists() else path


def name_in_the_box(folder: Path) -> str:
    """The name of a model in the box; empty for another folder."""
    folder = folder.resolve()
    return folder.name if folder.parent == ASSETS.resolve() else ""


def is_packed(folder: Path) -> bool:
    """Whether a folder is a packed model."""
    return (folder / MODEL).is_file()


def save_model(folder: Path, variables: dict, words: Mapping[str, np.ndarray], kind: str) -> None:
    """Writes model.safetensors.

    Args:
      variables: nested collections of the model's arrays; they are stored as float16.
      words: visual words float32 [v, 128] of each kind of SIFT.
      kind: of the model, one of `checkpoint.KINDS`.
    """
    arrays = {
        name: np.asarray(value, np.float16)
        for name, value in flatten_dict(variables, sep="/").items()
    }
    arrays |= {_WORDS + name: np.asarray(value, np.float32) for name, value in words.items()}
    save_arrays(folder / MODEL, arrays, {"kind": kind})


def load_model(folder: Path) -> tuple[dict, str]:
    """The variables of a packed model, float32, and its kind.

    All files of the folder are compared with digests.json here, so that those who read further
    files of it need not do so again.

    Raises:
      UserError: a file is damaged or missing.
    """
    check(folder)
    arrays, metadata = load_arrays(folder / MODEL)
    variables = {n: a.astype(np.float32) for n, a in arrays.items() if not n.startswith(_WORDS)}
    return unflatten_dict(variables, sep="/"), metadata["kind"]


def load_words(folder: Path, kind: str) -> np.ndarray:
    """The visual words of a kind of SIFT, float32 [v, 128].

    Raises:
      UserError: the model has none.
    """
    arrays, _ = load_arrays(folder / MODEL)
    if _WORDS + kind not in arrays:
        raise UserError(f"{folder / MODEL} has no visual words of SIFT {kind!r}")
    return arrays[_WORDS + kind]


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays by name, with texts by name."""
    with atomic_write(path, "wb") as file:
        file.write(save(dict(arrays), metadata=dict(metadata)))


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file of `save_arrays`.

    Raises:
      UserError: the file is missing, or is no such file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def to_bytes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds rows float32 [k, D] to int8 [k, D] and a factor float32 [k] of each row."""
    factors = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny) / 127
    return np.rint(rows / factors[:, None]).astype(np.int8), factors.astype(np.float32)


def from_bytes(rows: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The float32 rows [k, D] of `to_bytes`."""
    return rows.astype(np.float32) * factors[:, None]


def seal(folder: Path) -> None:
    """Writes digests.json, the SHA-256 of every other file of the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != DIGESTS)
    digests = {name: _sha256(folder / name) for name in names}
    with atomic_write(folder / DIGESTS, "w") as file:
        file.write(json.dumps(digests, indent=1) + "\n")


def check(folder: Path) -> None:
    """Compares the files of a packed model with digests.json.

    Raises:
      UserError: a file is damaged or missing.
    """
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        wrong = [name for name, digest in digests.items() if _sha256(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no whole packed model: {error}") from None
    if wrong:
        raise UserError(f"{folder}: {', '.join(wrong)} is damaged (its SHA-256 is another)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
