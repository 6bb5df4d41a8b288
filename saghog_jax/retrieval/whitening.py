"""PCA whitening of page descriptors, with separate functions to fit and to apply it.

Whitening fitted on the evaluated pages is transductive (as published), fitted on other pages it is
inductive. Axis letters: p pages, d width of a descriptor, k kept components.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.aggregate import l2_normalize

MODES = ("none", "transductive", "inductive")
SOLVERS = ("auto", "gram", "covariance", "randomized")
# With more pages and dimensions exact eigenvectors take longer than randomised passes.
_EXACT_UP_TO = 8192
_OVERSAMPLES = 32
_POWER_ITERATIONS = 6
# Float32 values in memory at a time when descriptors are read from disk: 256 MiB.
_BLOCK_VALUES = 1 << 26
# Columns of float16 components that are in memory as float32 at a time.
_COLUMNS = 4096


class Whitening(NamedTuple):
    """y = (x - mean) components^T / sqrt(variances + eps).

    Attributes:
      mean: mean of the training descriptors.
      components: orthonormal rows.
      variances: in descending order.
      eps: added to the variances.
      pages: number p of training pages.
    """

    mean: Float32[np.ndarray, " d"]
    components: Float[np.ndarray, "k d"]
    variances: Float32[np.ndarray, " k"]
    eps: float
    pages: int


def choose_dim(dim: int, pages: int, width: int, only_beyond: int = 0) -> tuple[int, str]:
    """Number of components to keep, and a remark if it is unwise or differs from `dim`.

    If k is near the number of pages, all pages become equidistant: the directions of smallest
    variance, which are noise, count as much as the first ones.

    Args:
      dim: requested number of components, limited to p - 1, which the pages span; 0 takes a quarter
        of the pages, at most 512. More than a quarter gives a remark.
      pages: p.
      width: d.
      only_beyond: no whitening (0 components) if pages or width are not more than this (500 in one
        place of the published code, 600 in another).

    Returns:
      the number of components, 0 for no whitening, and the remark, which may be empty.

    Raises:
      UserError: fewer than two pages, or a negative dim.
    """
    if pages < 2 or dim < 0:
        raise UserError(f"whitening to {dim} dimensions fitted on {pages} pages: impossible")
    if min(pages, width) <= only_beyond:
        return 0, f"no whitening: {pages} pages of width {width}, not more than {only_beyond}"
    quarter = max(1, pages // 4)
    if dim == 0:
        return min(512, quarter, width), ""
    k = min(dim, pages - 1, width)
    remark = ""
    if k < dim:
        remark = f"{pages} pages of width {width} span {k} dimensions, not {dim}. "
    if k > quarter:
        remark += (
            f"Whitening to {k} dimensions fitted on only {pages} pages makes noise as loud as "
            f"signal (all pages end up equally far apart); at most {quarter} is advised."
        )
    return k, remark.strip()


def fit(
    x: Float[np.ndarray, "p d"],
    dim: int,
    eps: float = 0.0,
    ddof: int = 1,
    solver: str = "auto",
    seed: int = 0,
) -> Whitening:
    """Fits the `dim` leading principal components of x [p, d]; x may be memory-mapped.

    The exact solvers compute eigenvectors u of the p x p Gram matrix (then the components are
    X_c^T u / sqrt(eigenvalue)) or of the d x d covariance matrix, whichever is smaller. Randomised
    subspace iteration is used if both are large. Components whose variance is rounding noise are
    dropped, so k may be less than `dim`.

    Args:
      x: [p, d].
      dim: number of components.
      eps: added to the variances.
      ddof: the variance divides by p - ddof. The published code has 1 in one place (PCA), and 0
        with `eps` 1e-5 in another (reference: section 7).
      solver: one of SOLVERS.
      seed: of the randomised solver.

    Raises:
      ValueError: dim is outside of 1..min(p - 1, d), or the solver is unknown.
    """
    p, d = x.shape
    if not 1 <= dim <= min(p - 1, d):
        raise ValueError(f"dim {dim} for {p} pages of width {d}; at most {min(p - 1, d)}")
    check_choice("solver", solver, SOLVERS)
    if solver == "auto":
        exact = "gram" if p <= d else "covariance"
        solver = exact if min(p, d) <= _EXACT_UP_TO else "randomized"
    mean = _mean(x)
    solve = {"gram": _by_gram, "covariance": _by_covariance, "randomized": _by_sketch}[solver]
    components, squares = solve(x, mean, dim, seed)
    # Smaller squared singular values are rounding noise of the float32 descriptors.
    significant = squares > squares[0] * np.finfo(np.float32).eps
    variances = (squares / (p - ddof)).astype(np.float32)
    return Whitening(
        mean, components[significant].astype(np.float32), variances[significant], eps, p
    )


def apply(whitening: Whitening, x: Float[np.ndarray, "p d"]) -> Float32[np.ndarray, "p k"]:
    """Whitens and L2-normalises x [p, d] to float32 [p, k].

    Components may be float16; they are used in float32, column by column, so that they do not need
    twice their memory.

    Raises:
      ValueError: the width differs from that of the training descriptors.
    """
    d = len(whitening.mean)
    if x.shape[1] != d:
        raise ValueError(f"descriptors of width {x.shape[1]}, the whitening was fitted on {d}")
    out = np.zeros((len(x), len(whitening.components)), np.float32)
    columns = d if whitening.components.dtype == np.float32 else _COLUMNS
    for start in range(0, d, columns):
        part = slice(start, start + columns)
        components = whitening.components[:, part].astype(np.float32, copy=False)
        for rows in _row_blocks(x):
            out[rows] += (x[rows, part] - whitening.mean[part]) @ components.T
    return l2_normalize(out / np.sqrt(whitening.variances + np.float32(whitening.eps)))


def save(whitening: Whitening, path: str | os.PathLike, checkpoint: str = "") -> None:
    """Writes a whitening to an .npz file for `load`.

    Args:
      checkpoint: digest of the model of the descriptors.
    """
    with atomic_write(Path(path), "wb") as file:
        np.savez(file, **whitening._asdict(), checkpoint=np.str_(checkpoint))


def load(path: str | os.PathLike) -> tuple[Whitening, str]:
    """Reads a file of `save`: the whitening and the digest of its model ('' if unknown).

    Raises:
      UserError: the file is missing, is no whitening, or contains anything but plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*Whitening._fields, "checkpoint")}
    except FileNotFoundError:
        raise UserError(f"no whitening at {path}") from None
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a saved whitening ({error})") from None
    checkpoint = str(arrays.pop("checkpoint"))
    arrays |= {"eps": float(arrays["eps"]), "pages": int(arrays["pages"])}
    return Whitening(**arrays), checkpoint


def _row_blocks(x: np.ndarray) -> list[slice]:
    step = max(1, _BLOCK_VALUES // x.shape[1])
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _mean(x: np.ndarray) -> np.ndarray:
    total = sum(x[rows].sum(0, dtype=np.float64) for rows in _row_blocks(x))
    return (total / len(x)).astype(np.float32)


def _by_gram(x: np.ndarray, mean: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    del seed
    p, d = x.shape
    gram = np.zeros((p, p))
    # Products of column blocks in float32, their sum in float64.
    step = max(1, _BLOCK_VALUES // p)
    for start in range(0, d, step):
        part = x[:, start : start + step] - mean[start : start + step]
        gram += part @ part.T
    squares, u = _leading(gram, k)
    components = np.zeros((k, d))
    for rows in _row_blocks(x):
        components += u[rows].T.astype(np.float32) @ (x[rows] - mean)
    return components / np.sqrt(np.maximum(squares, 1e-30))[:, None], squares


def _by_covariance(
    x: np.ndarray, mean: np.ndarray, k: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    del seed
    scatter = np.zeros((x.shape[1],) * 2)
    for rows in _row_blocks(x):
        part = x[rows] - mean
        scatter += part.T @ part
    squares, v = _leading(scatter, k)
    return v.T, squares


def _leading(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy import linalg

    n = len(matrix)
    values, vectors = linalg.eigh(matrix, subset_by_index=(n - k, n - 1), overwrite_a=True)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _by_sketch(x: np.ndarray, mean: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy import linalg

    # Halko, Martinsson, Tropp 2011, algorithm 4.4: each round reads x once.
    p, d = x.shape
    width = min(k + _OVERSAMPLES, p, d)
    basis = np.random.default_rng(seed).standard_normal((d, width), dtype=np.float32)
    for _ in range(_POWER_ITERATIONS):
        basis = linalg.qr(_normal_product(x, mean, basis), mode="economic", overwrite_a=True)[0]
    small = np.zeros((width, width))
    for rows in _row_blocks(x):
        part = (x[rows] - mean) @ basis
        small += part.T @ part
    squares, v = _leading(small, k)
    return (basis @ v.astype(np.float32)).T, squares


def _normal_product(x: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    total = np.zeros((x.shape[1], basis.shape[1]), np.float32)
    for rows in _row_blocks(x):
        part = x[rows] - mean
        total += part.T @ (part @ basis)
    return total
