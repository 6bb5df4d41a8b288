"""Which patches make two pages similar: the similarity divided among the patches.

A page descriptor is a concatenation of parts: one for each scale of the page and for each
descriptor of its patches (learned, SIFT). Part j is phi(S_j) / |phi(S_j)|, times the root of its
weight w_j. S_j is the sum of the unit vectors y_i of the patches, phi(s) = sign(s) |s|^power. D is
the concatenation of all parts, divided by the root of the summed weights of the parts that have
patches. z is D, or D whitened and normalised to unit length. In compact descriptors each descriptor
of the patches is such a D of its own, with its own projection; z is their weighted concatenation.
What is explained is how much more similar the page is to its match than to an average page of the
gallery,

    z_page . (z_match - mean of z over the gallery).

Because phi(s) = |s|^(power - 1) s, this number is a sum over the patches, exactly: patch i
contributes to part j y_i . (|S_j|^(power - 1) o t_j) w_j^(1/2) / |phi(S_j)|. t_j is the part of the
difference above that belongs to part j (for whitened descriptors: mapped back through the
whitening; its constant term is shared evenly among the patches). Without a patch the similarity
would change by `power` times its contribution, less its share in the length of the page, to first
order only.

Axis letters: n patches of a page, l descriptors of a patch, v clusters, d width, k width of z.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saghog_jax.embedding.pooler import PagePatches
from saghog_jax.models import netrvlad
from saghog_jax.retrieval.whitening import Whitening

# Patches of one device call.
_BLOCK = 512


class Clusters(NamedTuple):
    """Centroids [v, d] of the model, and whether it normalises inside a cluster."""

    centroids: np.ndarray
    intra_normalize: bool


class Part(NamedTuple):
    """A part of a page descriptor: one descriptor of its patches at one scale.

    page: descriptors of the patches.
    clusters: of the describer.
    total: S, the sum of the unit vectors of the patches, float32 [v * d].
    power: exponent of the power normalisation.
    share: weight of the part in the similarity; of compact descriptors within its projection.
    """

    page: PagePatches
    clusters: Clusters
    total: np.ndarray
    power: float
    share: float


class Projected(NamedTuple):
    """Parts that are projected together: one descriptor at all of its scales.

    parts: how many of the parts, in their order.
    by: the projection.
    share: weight in the similarity.
    """

    parts: int
    by: Whitening
    share: float


def page_total(page: PagePatches, clusters: Clusters) -> np.ndarray:
    """S: the sum of the unit vectors of a page's patches, float32 [v * d]."""
    total = sum(
        np.asarray(
            _total(assignment, x, clusters.centroids, intra_normalize=clusters.intra_normalize)
        )
        for x, assignment in _blocks(page)
    )
    return total.reshape(-1)


def contributions(
    parts: Sequence[Part],
    target: np.ndarray,
    whitened: Whitening | None = None,
    projected: Sequence[Projected] = (),
) -> list[np.ndarray]:
    """What each patch adds to z_page . target, float32 [n] for each part; the sum is exact.

    Args:
      target: [k], such as z of the match minus the mean z of the gallery.
      whitened: the whitening that made z of the page descriptors; None: z is the descriptor.
      projected: how compact descriptors were made of the parts; empty for long descriptors.
    """
    gains = [_gain(part) for part in parts]
    sums = [gain * part.total.astype(np.float64) for gain, part in zip(gains, parts, strict=True)]
    sizes = [group.parts for group in projected] or [len(parts)]
    ends = np.cumsum(sizes)
    groups = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    # The unit vector of each group, and its length before.
    lengths = [max(np.linalg.norm(np.concatenate(sums[group])), 1e-12) for group in groups]
    units = [np.concatenate(sums[g]) / length for g, length in zip(groups, lengths, strict=True)]
    towards, constant = target.astype(np.float64), 0.0
    if whitened is not None:
        z = units[0] if not projected else _compact(units, projected)
        towards, constant = _back(whitened, z, towards)
    directions = [towards]
    if projected:
        directions, more = _back_to_groups(units, projected, towards)
        constant += more
    share = np.float32(constant / max(sum(len(part.page.place) for part in parts), 1))
    by_part: list[np.ndarray] = []
    for group, length, direction in zip(groups, lengths, directions, strict=True):
        widths = np.cumsum([part.total.size for part in parts[group]])[:-1]
        own = np.split(direction / length, widths)
        for part, gain, toward in zip(parts[group], gains[group], own, strict=True):
            toward = (gain * toward).astype(np.float32)
            by_part.append(_towards(part.page, toward, part.clusters) + share)
    return by_part


def _gain(part: Part) -> np.ndarray:
    """What S of a part is multiplied by in its column of the descriptor, float64 [v * d]."""
    size = np.abs(part.total.astype(np.float64))
    norm = max(np.linalg.norm(size**part.power), 1e-12)
    gain = np.where(size > 0, np.maximum(size, 1e-30) ** (part.power - 1), 0)
    return gain * part.share**0.5 / norm


def _back(fitted: Whitening, x: np.ndarray, towards: np.ndarray) -> tuple[np.ndarray, float]:
    """A direction for whitened unit vectors as one for the vector x before, and a constant."""
    z, scale = _projected(fitted, x)
    direction = fitted.components.T @ (scale * towards / max(np.linalg.norm(z), 1e-12))
    return direction, -float(direction @ fitted.mean)


def _projected(fitted: Whitening, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whitened x before L2 normalisation, and the factor of each component: float64 [k]."""
    scale = 1 / np.sqrt(fitted.variances.astype(np.float64) + fitted.eps)
    return (fitted.components @ (x - fitted.mean)) * scale, scale


def _compact(units: Sequence[np.ndarray], projected: Sequence[Projected]) -> np.ndarray:
    """The compact descriptor, float64 [k], of the unit vectors of the groups."""
    columns = []
    for unit, group in zip(units, projected, strict=True):
        z, _ = _projected(group.by, unit)
        present = group.share**0.5 if unit.any() else 0.0
        columns.append(present * z / max(np.linalg.norm(z), 1e-12))
    z = np.concatenate(columns)
    return z / max(np.linalg.norm(z), 1e-12)


def _back_to_groups(
    units: Sequence[np.ndarray], projected: Sequence[Projected], towards: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """A direction for compact descriptors as one for the unit vector of each group, a constant."""
    present = [group.share if unit.any() else 0.0 for unit, group in zip(units, projected)]
    total = max(sum(present), 1e-12)
    ends = np.cumsum([len(group.by.variances) for group in projected])[:-1]
    directions, constant = [], 0.0
    for unit, group, own, share in zip(
        units, projected, np.split(towards, ends), present, strict=True
    ):
        direction, more = _back(group.by, unit, own * (share / total) ** 0.5)
        directions.append(direction)
        constant += more
    return directions, constant


def _towards(page: PagePatches, direction: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Inner products of a page's unit vectors with a direction [v * d], float32 [n]."""
    products = [
        _products(
            assignment,
            x,
            clusters.centroids,
            direction.reshape(1, *clusters.centroids.shape),
            intra_normalize=clusters.intra_normalize,
        )
        for x, assignment in _blocks(page)
    ]
    return np.concatenate(products)[: len(page.place), 0]


def _blocks(page: PagePatches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """x and assignment, block by block, so that one shape is compiled for all pages."""
    for first in range(0, max(1, len(page.place)), _BLOCK):
        rows = slice(first, first + _BLOCK)
        yield padded(page.x[rows], page.assignment[rows], _BLOCK)


def padded(x: np.ndarray, assignment: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x and assignment, filled up to `rows` with zero assignment, which gives zero vectors."""
    x, assignment = (
        np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
        for array in (x, assignment)
    )
    return x, assignment


@partial(jax.jit, static_argnames="intra_normalize")
def _total(
    assignment: jax.Array, x: jax.Array, centroids: jax.Array, *, intra_normalize: bool
) -> jax.Array:
    whole = jnp.ones((1, x.shape[0]), x.dtype)
    return netrvlad.page_sum(assignment, x, centroids, whole, intra_normalize)


_products = jax.jit(netrvlad.inner_products, static_argnames="intra_normalize")
