"""SIFT of the patches that a model sees: fixed descriptors beside the learned ones.

There are two kinds. `patch` (Lowe 2004, section 6): orientations of the blurred ink in 4 x 4 cells
of 8 bins, interpolated between neighbours, under a Gaussian window as wide as two cells; the window
is the upright patch. `keypoint`: OpenCV's descriptors of the page at the keypoints, at the size and
angle that SIFT detected. Both become RootSIFT. A page descriptor is the sum of unit residuals to
the nearest visual word. The words lie in the run folder of the finetuning on whose patches they
were fitted.

Axis letters: b patches, s side of a patch, v words.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.labels.pseudo_labels import root_sift
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.reader import Store, read_npy
from saghog_jax.models import inputs
from saghog_jax.runs.older_configs import existing_words_file
from saghog_jax.weights import packed

KINDS = ("patch", "keypoint")
# Exponent of the power normalisation of SIFT page descriptors, as usual for SIFT-VLAD.
POWER = 0.5
# Patches on which the visual words are fitted.
SAMPLES = 20_000
_CELLS, _BINS = 4, 8
WIDTH = _CELLS * _CELLS * _BINS
# Blur of the ink in pixels, and the value at which bins of a unit descriptor are clipped.
_SIGMA, _LARGEST = 1.6, 0.2
_TINY = 1e-7
_BATCH = 1024


def descriptor_name(kind: str) -> str:
    """The name of a kind among all patch descriptors, such as `sift_patch`."""
    return f"sift_{kind}"


def words_file(kind: str) -> str:
    """The file with the visual words of a kind in a run folder."""
    return f"sift_words_{kind}.npy"


def check_weights(weights: Mapping[str, float]) -> None:
    """Checks the weights of SIFT in the similarity of two pages, by kind.

    Raises:
      UserError: a weight is negative, or they leave nothing to the learned descriptor.
    """
    values = {kind: weights.get(kind, 0.0) for kind in KINDS}
    if min(values.values()) < 0 or sum(values.values()) >= 1:
        fields = ", ".join(f"config.sift.{kind}={value}" for kind, value in values.items())
        raise UserError(f"{fields}: weights must be at least 0 and add up to less than 1")


def describe(kind: str, binary: jax.Array, descriptors: jax.Array | None) -> jax.Array:
    """RootSIFT of a kind, float32 [b, 128], zeros where the patch has no edge.

    Args:
      binary: float [b, s, s, 1], ink and paper.
      descriptors: uint8 [b, 128], OpenCV's; read by `keypoint` alone.
    """
    return upright(binary) if kind == "patch" else _root(descriptors.astype(jnp.float32))


def upright(binary: jax.Array) -> jax.Array:
    """RootSIFT of patches by their ink.

    Args:
      binary: float [b, s, s, 1], ink and paper.

    Returns:
      float32 [b, 128], cells row by row, bins inside; zeros where the ink has no edge.
    """
    s = binary.shape[1]
    blur, pool = (jnp.asarray(matrix) for matrix in _matrices(s))
    highest = jax.lax.Precision.HIGHEST
    image = jnp.einsum(
        "yi,bij,xj->byx", blur, binary[..., 0].astype(jnp.float32), blur, precision=highest
    )
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    # Upwards, as in OpenCV.
    dy = padded[:, :-2, 1:-1] - padded[:, 2:, 1:-1]
    length = jnp.sqrt(dx * dx + dy * dy)
    angle = jnp.arctan2(dy, dx) * np.float32(_BINS / (2 * np.pi))
    apart = jnp.abs(jnp.mod(angle[..., None] - jnp.arange(_BINS, dtype=jnp.float32), _BINS))
    apart = jnp.minimum(apart, _BINS - apart)
    votes = jnp.maximum(0, 1 - apart) * length[..., None]
    cells = jnp.einsum("cyx,byxo->bco", pool, votes, precision=highest).reshape(-1, WIDTH)
    cells /= jnp.maximum(jnp.linalg.norm(cells, axis=1, keepdims=True), _TINY)
    cells = jnp.minimum(cells, _LARGEST)
    return _root(cells)


def _root(cells: jax.Array) -> jax.Array:
    return jnp.sqrt(cells / jnp.maximum(cells.sum(1, keepdims=True), _TINY))


def _matrices(s: int) -> tuple[np.ndarray, np.ndarray]:
    """The blur of rows or columns, float32 [s, s], edges repeated; weights of cells [16, s, s]."""
    reach = int(np.ceil(4 * _SIGMA))
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _SIGMA**2))
    blur = np.zeros((s, s))
    for at in range(s):
        columns = np.clip(np.arange(at - reach, at + reach + 1), 0, s - 1)
        np.add.at(blur[at], columns, kernel / kernel.sum())
    # The keypoint is pixel s/2; a cell is s/4 wide.
    place = (np.arange(s) - s // 2) * _CELLS / s
    near = np.maximum(0, 1 - np.abs(place + (_CELLS - 1) / 2 - np.arange(_CELLS)[:, None]))
    near = near * np.exp(-(place**2) / (_CELLS**2 / 2))
    pool = np.einsum("ay,bx->abyx", near, near).reshape(-1, s, s)
    return blur.astype(np.float32), pool.astype(np.float32)


def nearest_word(x: jax.Array, words: jax.Array) -> jax.Array:
    """One-hot assignment float32 [b, v] of RootSIFT [b, 128] to words [v, 128]."""
    similarity = 2 * jnp.matmul(x, words.T, precision="highest") - jnp.sum(words * words, axis=1)
    return jax.nn.one_hot(jnp.argmax(similarity, axis=1), len(words), dtype=x.dtype)


def ensure_words(folder: Path, store: Store, rows: np.ndarray, words: int) -> None:
    """Fits visual words on patches of a store and saves them in a run folder, unless it has them.

    Args:
      rows: patches to choose from; at most `SAMPLES`, spread evenly, are used.

    Raises:
      UserError: there are fewer patches than words, or the store keeps no descriptors.
    """
    lacking = [
        kind for kind in KINDS if not existing_words_file(folder / words_file(kind)).exists()
    ]
    if not lacking:
        return
    if len(rows) < words:
        raise UserError(f"config.sift_words={words} are more than the {len(rows)} patches")
    chosen = rows[evenly(len(rows), SAMPLES)]
    folder.mkdir(parents=True, exist_ok=True)
    for kind in lacking:
        centres = sift_vlad.centres(_described(kind, store, chosen), words)
        with atomic_write(folder / words_file(kind), "wb") as file:
            np.save(file, centres, allow_pickle=False)


def _described(kind: str, store: Store, rows: np.ndarray) -> np.ndarray:
    """RootSIFT of patches of a store, float32 [n, 128]."""
    if kind == "keypoint":
        return root_sift(store.descriptors(rows))
    compute = jax.jit(lambda batch: upright(inputs.decode(batch)[1]))
    parts = []
    for first in range(0, len(rows), _BATCH):
        part = rows[first : first + _BATCH]
        # The last batch is filled up so that only one shape is compiled.
        batch = store.gather(np.resize(part, _BATCH))
        parts.append(np.asarray(compute(batch))[: len(part)])
    return np.concatenate(parts)


def load_words(folder: Path, kind: str) -> np.ndarray:
    """The visual words of a kind in a run folder, float32 [v, 128].

    Raises:
      UserError: the run folder has none, or the file is damaged.
    """
    if packed.is_packed(folder):
        return packed.load_words(folder, kind)
    path = existing_words_file(folder / words_file(kind))
    if not path.exists():
        raise UserError(
            f"{folder} has no {path.name}, which finetuning writes with config.sift_words above 0; "
            f"finetune anew, or embed with --config.sift.{kind}=0"
        )
    words = read_npy(path)
    if words.ndim != 2 or words.shape[1] != WIDTH or words.dtype != np.float32:
        raise UserError(f"{path} holds {words.dtype} {list(words.shape)}, not float32 [v, {WIDTH}]")
    return words
