"""PCA whitening of page descriptors: fitting and applying are two steps, so the protocol is open.

Fitted on the evaluated pages themselves it is transductive (as published), fitted on other pages
inductive. Axis letters: p pages, d width of a descriptor, k kept components.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import linalg

from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.aggregate import l2_normalize

MODES = ("none", "transductive", "inductive")
SOLVERS = ("auto", "gram", "covariance", "randomized")
# Beyond so many pages and dimensions the exact eigenvectors take longer than randomised passes.
_EXACT_UP_TO = 8192
_OVERSAMPLES = 32
_POWER_ITERATIONS = 6
# Float32 values held at a time when descriptors are streamed from disk; 256 MiB.
_BLOCK_VALUES = 1 << 26


class Whitening(NamedTuple):
    """y = (x - mean) components^T / sqrt(variances + eps)."""

    mean: np.ndarray  # float32 [d]
    components: np.ndarray  # float32 [k, d], orthonormal rows
    variances: np.ndarray  # float32 [k], descending
    eps: float
    pages: int  # p it was fitted on


def choose_dim(dim: int, pages: int, width: int, only_beyond: int = 0) -> tuple[int, str]:
    """Number of components to keep, and a remark where that is not what was asked for or unwise.

    With k near the number of pages every page becomes equidistant from every other: the directions
    of smallest variance, which are noise, count as much as the first. So `dim` 0 takes at most a
    quarter of the pages; more is done as told, up to what the pages span (p - 1), with a remark.
    0 components, no whitening, where pages or width are not more than `only_beyond` (the published
    code has 500 there, in another place 600).

    Raises:
      UserError: fewer than two pages, a negative dim.
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
    x: np.ndarray,
    dim: int,
    eps: float = 0.0,
    ddof: int = 1,
    solver: str = "auto",
    seed: int = 0,
) -> Whitening:
    """Fits the `dim` leading principal components of x [p, d]; x may be memory-mapped.

    Exact by the eigenvectors of the smaller of the p x p Gram and the d x d covariance matrix
    (DESIGN: components are X_c^T u / sqrt(l)); randomised subspace iteration where both are large.
    Components whose variance is rounding noise are left out, so k may be less than `dim`.

    Args:
      ddof: the variance divides by p - ddof; the published code has 1 in one place (PCA) and, with
        `eps` 1e-5, 0 in another (reference: section 7).

    Raises:
      ValueError: dim outside of 1..min(p - 1, d), an unknown solver.
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
    # Squared singular values below this are rounding of the float32 descriptors.
    real = squares > squares[0] * np.finfo(np.float32).eps
    variances = (squares / (p - ddof)).astype(np.float32)
    return Whitening(mean, components[real].astype(np.float32), variances[real], eps, p)


def apply(whitening: Whitening, x: np.ndarray) -> np.ndarray:
    """Whitens and L2-normalises x [p, d] to float32 [p, k].

    Raises:
      ValueError: a width other than the one fitted on.
    """
    d = len(whitening.mean)
    if x.shape[1] != d:
        raise ValueError(f"descriptors of width {x.shape[1]}, the whitening was fitted on {d}")
    scaled = (
        whitening.components / np.sqrt(whitening.variances + np.float32(whitening.eps))[:, None]
    )
    out = np.empty((len(x), len(scaled)), np.float32)
    for rows in _row_blocks(x):
        out[rows] = (x[rows] - whitening.mean) @ scaled.T
    return l2_normalize(out)


def save(whitening: Whitening, path: str | os.PathLike, checkpoint: str = "") -> None:
    """Writes an .npz that `load` reads; `checkpoint` is the digest of the model it belongs to."""
    with atomic_write(Path(path), "wb") as file:
        np.savez(file, **whitening._asdict(), checkpoint=np.str_(checkpoint))


def load(path: str | os.PathLike) -> tuple[Whitening, str]:
    """Reads what `save` wrote: the whitening and the digest of its model ('' if unknown).

    Raises:
      UserError: missing, not such a file, or holding anything but plain arrays.
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
    # Column blocks: products in float32, their sum in float64.
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
    n = len(matrix)
    values, vectors = linalg.eigh(matrix, subset_by_index=(n - k, n - 1), overwrite_a=True)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _by_sketch(x: np.ndarray, mean: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
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
