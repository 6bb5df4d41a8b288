"""Patches of many pages through the device in batches that mix pages; page descriptors come back.

Only what pools a page's patches is kept, so that memory grows neither with a page nor with the
collection. Axis letters: b patches of a batch, s pages of a batch, d width of a page descriptor.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import sharding
from saghog_jax.embedding.describers import Model, Seen
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.models import inputs
from saghog_jax.models.netrvlad import vlad
from saghog_jax.retrieval.aggregate import PagePool, l2_normalize
from saghog_jax.retrieval.whitening import Whitening

HIGHEST = jax.lax.Precision.HIGHEST


class Pooling(NamedTuple):
    """How the patch descriptors of a page become one; see `aggregate.PagePool`.

    whitenings: what is done to the unit patch descriptors of each model before; None: nothing.
    """

    mode: str
    gmp_lambda: float
    whitenings: list[Whitening | None]


class Embedder:
    """Runs all models on batches of patches and pools the results by page."""

    def __init__(
        self,
        models: Sequence[Model],
        pooling: Pooling,
        local_batch_size: int,
        pages: int,
        mesh_config: ConfigDict,
    ) -> None:
        self._models, self._pooling, self._b, self._s = models, pooling, local_batch_size, pages
        # Each process has pages of its own: nothing is asked of the devices of others.
        self._mesh = sharding.make_mesh(mesh_config, jax.local_devices())
        sharding.check_divisible("local_batch_size", local_batch_size, jax.local_device_count())
        whole = sharding.replicated(self._mesh)
        given = [
            (model.variables, None if w is None else _affine(w))
            for model, w in zip(models, pooling.whitenings, strict=True)
        ]
        self._variables = jax.device_put(given, whole)

        def compute(mode: str, variables: list[tuple], batch: dict) -> list[jax.Array]:
            images, binary = inputs.decode(batch)
            shown = {
                source: inputs.normalize(inputs.model_input(images, binary, source))
                for source in inputs.INPUTS
            }
            return [
                _part(
                    m,
                    mode,
                    v,
                    Seen(shown[m.input], binary, batch.get("descriptors")),
                    batch["segments"],
                )
                for m, v in zip(models, variables, strict=True)
            ]

        self._compute = jax.jit(compute, static_argnums=0, out_shardings=whole)

    @property
    def widths(self) -> list[int]:
        """Width of a page descriptor of each model."""
        return [
            model.dim if w is None else len(w.variances)
            for model, w in zip(self._models, self._pooling.whitenings, strict=True)
        ]

    def pages(self, cuts: Iterator[Cut | int]) -> Iterator[list[np.ndarray]]:
        """For each page's patches, in order, the pooled descriptors of each model: arrays [d].

        A number of patches stands for a page whose descriptors are not wanted: it takes up its
        place in the batches, so that those of the others come out the same to the bit. Such a page
        and one of no patches give zeros.
        """
        pools: dict[int, list[PagePool]] = {}
        begun, given = 0, 0
        pending = None
        for rows, ended in self._batches(cuts):
            wanted = any(isinstance(cut, Cut) for _, cut, *_ in rows)
            result = self._start(rows) if wanted else None
            self._collect(pending, pools)
            pending = (rows, result)
            # Pages whose last patches are in a batch that has been collected are whole.
            while given < begun:
                yield self._result(pools.pop(given, None))
                given += 1
            begun = ended
        self._collect(pending, pools)
        while given < begun:
            yield self._result(pools.pop(given, None))
            given += 1

    def vectors(self, cuts: Iterator[Cut], at_most: int) -> list[np.ndarray]:
        """The patch descriptors themselves, the first `at_most`: float32 [n, d] a model."""
        out = [np.zeros((at_most, width), np.float32) for width in self.widths]
        n = 0
        for rows, _ in self._batches(cuts):
            if n == at_most or not rows:
                break
            filled = min(at_most - n, sum(last - first for *_, first, last in rows))
            for array, result in zip(out, self._start(rows, "vectors"), strict=True):
                array[n : n + filled] = np.asarray(result)[:filled]
            n += filled
        return [array[:n] for array in out]

    def _result(self, pools: list[PagePool] | None) -> list[np.ndarray]:
        return [pool.result() for pool in pools or self._new_pools()]

    def _new_pools(self) -> list[PagePool]:
        mode, gmp_lambda, _ = self._pooling
        return [PagePool(mode, width, gmp_lambda) for width in self.widths]

    def _batches(self, cuts: Iterator[Cut | int]) -> Iterator[tuple[list, int]]:
        """Pieces (page, cut, first, last) that fill a batch, and how many pages end in it."""
        rows, filled, ended = [], 0, 0
        for page, cut in enumerate(cuts):
            first, n = 0, cut if isinstance(cut, int) else len(cut.patches)
            while first < n:
                if filled == self._b or len(rows) == self._s:
                    yield rows, ended
                    rows, filled = [], 0
                last = min(n, first + self._b - filled)
                rows.append((page, cut, first, last))
                filled += last - first
                first = last
            ended = page + 1
        yield rows, ended

    def _start(
        self, rows: list[tuple[int, Cut | int, int, int]], mode: str = ""
    ) -> list[jax.Array]:
        """Sends a batch to the device, filled up with blank patches of weight zero."""
        cut = next(cut for _, cut, *_ in rows if isinstance(cut, Cut))
        batch = {
            name: np.zeros((self._b, *array.shape[1:]), np.uint8)
            for name, array in cut.shipped().items()
        }
        segments = np.zeros((self._b, self._s), np.float32)
        at = 0
        for s, (_, cut, first, last) in enumerate(rows):
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
        rows, result = pending
        arrays = [np.asarray(array) for array in result]
        at = 0
        for s, (page, cut, first, last) in enumerate(rows):
            count = last - first
            wanted = pools.setdefault(page, self._new_pools()) if isinstance(cut, Cut) else []
            for pool, array in zip(wanted, arrays):
                if self._pooling.mode == "gmp":
                    pool.add(array[at : at + count], count)
                else:
                    pool.add(array[s], count)
            at += count


def _affine(whitening: Whitening) -> tuple[np.ndarray, np.ndarray]:
    scale = np.sqrt(whitening.variances + np.float32(whitening.eps))
    return whitening.mean, (whitening.components / scale[:, None]).T


def _part(
    model: Model,
    mode: str,
    variables: tuple,
    seen: Seen,
    segments: jax.Array,
) -> jax.Array:
    """What the device says of a batch: [s, d], or the patch descriptors [b, d] themselves (gmp)."""
    weights, affine = variables
    if mode in ("sum", "mean") and affine is None:
        # The short way: no vector of a patch is formed.
        return model.sums(weights, seen, segments.T)
    y = _vectors(model, variables, seen)
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


def _vectors(model: Model, variables: tuple, seen: Seen) -> jax.Array:
    """Unit patch descriptors [b, d], whitened and made unit again where that is asked for."""
    weights, affine = variables
    x, assignment = model.describe(weights, seen)
    y = vlad(assignment, x, jnp.asarray(model.centroids), model.intra_normalize)
    y = l2_normalize(y.reshape(y.shape[0], -1))
    if affine is None:
        return y
    mean, matrix = affine
    return l2_normalize(jnp.matmul(y - mean, matrix, precision=HIGHEST))
