"""Patches of many pages through the device, in batches that mix pages.

`PagePooler` keeps only what pools the patches of a page, so that memory grows neither with a page
nor with the collection; `PatchDescription` returns the descriptors of single patches. Axis letters:
b patches of a batch, n patches of a page, s pages of a batch, l descriptors of a patch, v clusters,
d width.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import sharding
from saghog_jax.embedding.describers import PatchBatch, PatchDescriber
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.models import inputs
from saghog_jax.models.netrvlad import vlad
from saghog_jax.retrieval.aggregate import PagePool, l2_normalize
from saghog_jax.retrieval.whitening import Whitening

HIGHEST = jax.lax.Precision.HIGHEST
# Patches of one device call of `PatchDescription`.
_DESCRIBED = 256


class Pooling(NamedTuple):
    """How the patch descriptors of a page become one vector; see `aggregate.PagePool`.

    whitenings: applied to the unit patch descriptors of each describer before; None: not whitened.
    """

    mode: str
    gmp_lambda: float
    whitenings: list[Whitening | None]


class Piece(NamedTuple):
    """Patches `first` to `last` (exclusive) of a page that lie in a batch.

    page: number of the page.
    cut: its patches, or their number where its descriptors are not needed.
    """

    page: int
    cut: Cut | int
    first: int
    last: int


class PagePooler:
    """Runs describers on batches of patches and pools the results by page.

    Args:
      describers: run on each patch.
      pooling: how a page's patches are pooled.
      local_batch_size: patches of a batch of this process.
      pages: most pages mixed in a batch.
      mesh_config: axis sizes over the devices of this process.
    """

    def __init__(
        self,
        describers: Sequence[PatchDescriber],
        pooling: Pooling,
        local_batch_size: int,
        pages: int,
        mesh_config: ConfigDict,
    ) -> None:
        self._describers, self._pooling = describers, pooling
        self._b, self._s = local_batch_size, pages
        # Each process embeds its own pages, on its own devices.
        self._mesh = sharding.make_mesh(mesh_config, jax.local_devices())
        sharding.check_divisible("local_batch_size", local_batch_size, jax.local_device_count())
        whole = sharding.replicated(self._mesh)
        host_variables = [
            (describer.variables, None if w is None else _affine(w))
            for describer, w in zip(describers, pooling.whitenings, strict=True)
        ]
        self._variables = jax.device_put(host_variables, whole)

        def compute(mode: str, variables: list[tuple], batch: dict) -> list[jax.Array]:
            patches = {source: patch_batch(batch, source) for source in inputs.INPUTS}
            return [
                _pooled(d, mode, v, patches[d.input], batch["segments"])
                for d, v in zip(describers, variables, strict=True)
            ]

        self._compute = jax.jit(compute, static_argnums=0, out_shardings=whole)

    @property
    def widths(self) -> list[int]:
        """Width of a page descriptor of each describer."""
        return [
            describer.dim if w is None else len(w.variances)
            for describer, w in zip(self._describers, self._pooling.whitenings, strict=True)
        ]

    def pages(self, cuts: Iterator[Cut | int]) -> Iterator[list[np.ndarray]]:
        """Yields, for each page in order, its pooled descriptors, float32 [d] for each describer.

        A number of patches stands for a page whose descriptors are not needed: it keeps its place
        in the batches, so that those of the other pages are the same to the bit. Such a page and a
        page without patches give zeros.
        """
        pools: dict[int, list[PagePool]] = {}
        begun, yielded = 0, 0
        pending = None
        for pieces, ended in self._batches(cuts):
            needed = any(isinstance(piece.cut, Cut) for piece in pieces)
            result = self._start(pieces) if needed else None
            self._collect(pending, pools)
            pending = (pieces, result)
            # Pages whose last patches are in a batch that has been collected are whole.
            while yielded < begun:
                yield self._result(pools.pop(yielded, None))
                yielded += 1
            begun = ended
        self._collect(pending, pools)
        while yielded < begun:
            yield self._result(pools.pop(yielded, None))
            yielded += 1

    def vectors(self, cuts: Iterator[Cut], at_most: int) -> list[np.ndarray]:
        """Descriptors of the first `at_most` patches: float32 [n, d] for each describer."""
        out = [np.zeros((at_most, width), np.float32) for width in self.widths]
        n = 0
        for pieces, _ in self._batches(cuts):
            if n == at_most or not pieces:
                break
            filled = min(at_most - n, sum(piece.last - piece.first for piece in pieces))
            for array, result in zip(out, self._start(pieces, "vectors"), strict=True):
                array[n : n + filled] = np.asarray(result)[:filled]
            n += filled
        return [array[:n] for array in out]

    def _result(self, pools: list[PagePool] | None) -> list[np.ndarray]:
        return [pool.result() for pool in pools or self._new_pools()]

    def _new_pools(self) -> list[PagePool]:
        mode, gmp_lambda, _ = self._pooling
        return [PagePool(mode, width, gmp_lambda) for width in self.widths]

    def _batches(self, cuts: Iterator[Cut | int]) -> Iterator[tuple[list[Piece], int]]:
        """Yields the pieces that fill a batch, and how many pages have ended by then."""
        pieces, filled, ended = [], 0, 0
        for page, cut in enumerate(cuts):
            first, n = 0, cut if isinstance(cut, int) else len(cut.patches)
            while first < n:
                if filled == self._b or len(pieces) == self._s:
                    yield pieces, ended
                    pieces, filled = [], 0
                last = min(n, first + self._b - filled)
                pieces.append(Piece(page, cut, first, last))
                filled += last - first
                first = last
            ended = page + 1
        yield pieces, ended

    def _start(self, pieces: list[Piece], mode: str = "") -> list[jax.Array]:
        """Sends a batch to the device, filled up with blank patches of weight zero."""
        cut = next(piece.cut for piece in pieces if isinstance(piece.cut, Cut))
        batch = {
            name: np.zeros((self._b, *array.shape[1:]), np.uint8)
            for name, array in cut.shipped().items()
        }
        segments = np.zeros((self._b, self._s), np.float32)
        at = 0
        for s, (_, cut, first, last) in enumerate(pieces):
            end = at + last - first
            if isinstance(cut, Cut):
                for name, array in cut.shipped().items():
                    batch[name][at:end] = array[first:last]
                segments[at:end, s] = 1.0
            at = end
        batch = jax.device_put(batch | {"segments": segments}, sharding.batch_sharding(self._mesh))
        return self._compute(mode or self._pooling.mode, self._variables, batch)

    def _collect(self, pending: tuple | None, pools: dict[int, list[PagePool]]) -> None:
        if pending is None or pending[1] is None:
            return
        pieces, result = pending
        arrays = [np.asarray(array) for array in result]
        at = 0
        for s, (page, cut, first, last) in enumerate(pieces):
            count = last - first
            page_pools = pools.setdefault(page, self._new_pools()) if isinstance(cut, Cut) else []
            for pool, array in zip(page_pools, arrays):
                if self._pooling.mode == "gmp":
                    pool.add(array[at : at + count], count)
                else:
                    pool.add(array[s], count)
            at += count


class PagePatches(NamedTuple):
    """Descriptors of the single patches of a page, and where the patches are.

    x, assignment: float32 [n, d] and [n, v], or [n, l, d] and [n, l, v].
    place: int [n, 2], the keypoint's x and y in pixels of the page as it was cut.
    side: of a patch, in these pixels.
    """

    x: np.ndarray
    assignment: np.ndarray
    place: np.ndarray
    side: int


class PatchDescription:
    """Describes the single patches of pages by one describer, in batches of one compiled shape."""

    def __init__(self, describer: PatchDescriber) -> None:
        self._describer = describer
        self._compute = jax.jit(
            lambda variables, batch: describer.describe(
                variables, patch_batch(batch, describer.input)
            )
        )

    def page(self, cut: Cut, side: int) -> PagePatches:
        """The patches of a page, `side` pixels wide, with float32 features and assignments."""
        parts = []
        # Once at least, so that a page without a patch has arrays of the right width.
        for first in range(0, max(1, len(cut.patches)), _DESCRIBED):
            batch = {name: array[first:][:_DESCRIBED] for name, array in cut.shipped().items()}
            n = len(batch["ink"])
            filled = {k: np.zeros((_DESCRIBED, *v.shape[1:]), v.dtype) for k, v in batch.items()}
            for name, array in batch.items():
                filled[name][:n] = array
            results = self._compute(self._describer.variables, filled)
            parts.append([np.asarray(array, np.float32)[:n] for array in results])
        x, assignment = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return PagePatches(x, assignment, np.stack([cut.x, cut.y], axis=1), side)


def patch_batch(batch: dict[str, jax.Array], source: str) -> PatchBatch:
    """A shipped batch (`Cut.shipped`) as describers that read `source` take it."""
    images, binary = inputs.decode(batch)
    images = inputs.normalize(inputs.model_input(images, binary, source))
    return PatchBatch(images, binary, batch.get("descriptors"))


def _affine(whitening: Whitening) -> tuple[np.ndarray, np.ndarray]:
    scale = np.sqrt(whitening.variances + np.float32(whitening.eps))
    return whitening.mean, (whitening.components / scale[:, None]).T


def _pooled(
    describer: PatchDescriber,
    mode: str,
    variables: tuple,
    batch: PatchBatch,
    segments: jax.Array,
) -> jax.Array:
    """What the device computes of a batch: [s, d], or the patch descriptors [b, d] (gmp)."""
    weights, affine = variables
    if mode in ("sum", "mean") and affine is None:
        # The short way: no vector of a patch is formed.
        return describer.sums(weights, batch, segments.T)
    y = _vectors(describer, variables, batch)
    if mode in ("sum", "mean"):
        return jnp.matmul(segments.T, y, precision=HIGHEST)
    if mode == "lse":
        # Elements of unit vectors: their exponentials neither overflow nor vanish.
        return jnp.log(jnp.matmul(segments.T, jnp.exp(y), precision=HIGHEST))
    if mode == "max":
        s = segments.shape[1]
        page = jnp.where(segments.max(1) > 0, segments.argmax(1), s)
        return jax.ops.segment_max(y, page, num_segments=s + 1)[:s]
    return y


def _vectors(describer: PatchDescriber, variables: tuple, batch: PatchBatch) -> jax.Array:
    """Unit patch descriptors [b, d], whitened and normalised again where there is a whitening."""
    weights, affine = variables
    x, assignment = describer.describe(weights, batch)
    y = vlad(assignment, x, jnp.asarray(describer.centroids), describer.intra_normalize)
    y = l2_normalize(y.reshape(y.shape[0], -1))
    if affine is None:
        return y
    mean, matrix = affine
    return l2_normalize(jnp.matmul(y - mean, matrix, precision=HIGHEST))
