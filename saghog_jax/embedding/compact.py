"""Compact page descriptors: parts are whitened by PCA with shrinkage and then concatenated.

Component i of a part is divided by sqrt(v_i + s m): v_i is its variance, m the mean of the kept
variances, s the shrinkage. Then follows L2 normalisation. With s = 0 this is plain whitening; the
larger s, the less the weak components are amplified. The projection is fitted on fragments of
training pages: little text shows what varies within a hand.

Axis letters: p pages, D width of a part, k components of a part.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saghog_jax.embedding.describers import PatchDescriber
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.retrieval import whitening
from saghog_jax.retrieval.aggregate import concatenate
from saghog_jax.retrieval.whitening import Whitening
from saghog_jax.runs.checkpoint import params_digest
from saghog_jax.weights import packed

# Its name among the digests of descriptors.
NAME = "projection"
# Sides of a fragment in sides of a patch, and the least number of patches in it.
_WIDTH, _HEIGHT, _LEAST = 14, 7, 20


@dataclass(frozen=True)
class Projection:
    """Projects the parts of page descriptors.

    parts: the whitening of each part, by its descriptor; components are float16.
    digests: SHA-256 of the weights (or visual words) of each part, by its descriptor.
    """

    parts: Mapping[str, Whitening]
    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers."""
        total = hashlib.sha256()
        for name in sorted(self.parts):
            fitted = self.parts[name]
            total.update(name.encode() + np.float64(fitted.eps).tobytes())
            total.update(np.ascontiguousarray(fitted.mean).tobytes())
            for row in fitted.components:
                total.update(row.astype(np.float32).tobytes())
            total.update(np.ascontiguousarray(fitted.variances).tobytes())
        return total.hexdigest()

    def first(self, components: int) -> "Projection":
        """The projection with only the first components of each part.

        Raises:
          UserError: fewer were fitted.
        """
        for name, fitted in self.parts.items():
            if components > len(fitted.variances):
                raise UserError(
                    f"config.compact={components}: {len(fitted.variances)} components of {name} "
                    "were fitted; give at most so many"
                )
        cut = {
            name: fitted._replace(
                components=fitted.components[:components], variances=fitted.variances[:components]
            )
            for name, fitted in self.parts.items()
        }
        return Projection(cut, self.digests)

    def join(self, recipe: PageRecipe, sums: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Compact page descriptors of pooled patch descriptors.

        Args:
          sums: see `PageRecipe.join`.

        Returns:
          float32 [p, sum of k], unit rows; zero where a page has no patch at any scale.
        """
        rows = recipe.part_rows(sums)
        columns = []
        for part, own in zip(recipe.parts, rows, strict=True):
            present = np.any(own != 0, axis=1, keepdims=True)
            columns.append(whitening.apply(self.parts[part.descriptor], own) * present)
        return concatenate(columns, list(recipe.weights_of(sums).T[:, :, None]))


def join(
    recipe: PageRecipe, projection: Projection | None, sums: Sequence[Sequence[np.ndarray]]
) -> np.ndarray:
    """Page descriptors of pooled patch descriptors: compact ones, or long ones without projection.

    Args:
      sums: see `PageRecipe.join`.
    """
    return recipe.join(sums) if projection is None else projection.join(recipe, sums)


def fit(
    rows: Mapping[str, np.ndarray], digests: Mapping[str, str], components: int, shrinkage: float
) -> Projection:
    """Fits the projection of each part.

    Args:
      rows: float32 [p, D] of each part, by its descriptor; rows of zeros are left out.
      components: of each part, at most; fewer where there are few rows.
      shrinkage: s.

    Raises:
      UserError: too few rows.
    """
    parts = {}
    for name, own in rows.items():
        own = own[np.any(own != 0, axis=1)]
        k, _ = whitening.choose_dim(min(components, max(1, len(own) - 1)), *own.shape)
        fitted = whitening.fit(own, k)
        eps = float(shrinkage * fitted.variances.mean())
        # As stored: half the size, and the digest is that of the file's numbers.
        halves = fitted.components.astype(np.float16)
        parts[name] = fitted._replace(eps=eps, components=halves)
    return Projection(parts, dict(digests))


def save(projection: Projection, path: Path) -> None:
    """Writes a projection to an .npz file for `load`; components are float16."""
    arrays: dict[str, np.ndarray] = {}
    for name, fitted in projection.parts.items():
        values = fitted._asdict().items()
        arrays |= {f"{name}.{key}": np.asarray(value) for key, value in values}
        arrays[f"{name}.digest"] = np.str_(projection.digests[name])
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> Projection:
    """Reads a file of `save`.

    Raises:
      UserError: the file is missing, or is no projection.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [key.removesuffix(".mean") for key in file.files if key.endswith(".mean")]
            parts, digests = {}, {}
            for name in names:
                arrays = {key: file[f"{name}.{key}"] for key in Whitening._fields}
                arrays |= {"eps": float(arrays["eps"]), "pages": int(arrays["pages"])}
                parts[name] = Whitening(**arrays)
                digests[name] = str(file[f"{name}.digest"])
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: finetuning writes it with config.page.compact above 0; "
            "finetune anew, or embed with --config.compact=0 (long descriptors)"
        ) from None
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a projection of page descriptors ({error})") from None
    return Projection(parts, digests)


def save_packed(projection: Projection, folder: Path) -> None:
    """Writes the projection of a packed model; components are rounded to 8 bits."""
    arrays, texts = {}, {}
    for name, fitted in projection.parts.items():
        rows, factors = packed.to_bytes(fitted.components)
        arrays |= {
            f"{name}.mean": fitted.mean.astype(np.float32),
            f"{name}.components": rows,
            f"{name}.factors": factors,
            f"{name}.variances": fitted.variances.astype(np.float32),
        }
        texts |= {
            f"{name}.digest": projection.digests[name],
            f"{name}.eps": repr(fitted.eps),
            f"{name}.pages": str(fitted.pages),
        }
    packed.save_arrays(folder / packed.PROJECTION, arrays, texts)


def load_packed(folder: Path) -> Projection:
    """Reads the projection of a packed model, whose digests `packed.load_model` has compared.

    Raises:
      UserError: the file is missing, or is no such file.
    """
    arrays, texts = packed.load_arrays(folder / packed.PROJECTION)
    parts, digests = {}, {}
    for name in (key.removesuffix(".mean") for key in arrays if key.endswith(".mean")):
        parts[name] = Whitening(
            mean=arrays[f"{name}.mean"],
            components=packed.from_bytes(
                arrays[f"{name}.components"], arrays[f"{name}.factors"]
            ).astype(np.float16),
            variances=arrays[f"{name}.variances"],
            eps=float(texts[f"{name}.eps"]),
            pages=int(texts[f"{name}.pages"]),
        )
        digests[name] = texts[f"{name}.digest"]
    return Projection(parts, digests)


def file_of(run_folder: Path, which: str) -> Path:
    """Where a run folder keeps the projection of one of its checkpoints."""
    return run_folder / f"projection_{which}.npz"


def of_run(
    run_folder: Path, which: str, recipe: PageRecipe, describers: Sequence[PatchDescriber]
) -> Projection | None:
    """The projection of a run folder for the parts of a recipe; None for long descriptors.

    Raises:
      UserError: there is none, or it was fitted for other weights.
    """
    if not recipe.compact:
        return None
    if packed.is_packed(run_folder):
        path = run_folder / packed.PROJECTION
        projection = load_packed(run_folder)
    else:
        path = file_of(run_folder, which)
        projection = load(path)
    for part, describer in zip(recipe.parts, describers, strict=False):
        if projection.digests.get(part.descriptor) != params_digest(describer.variables):
            raise UserError(
                f"{path} was not fitted for {part.descriptor} of this checkpoint; the finetuning "
                "command fits it anew once this file is removed"
            )
    return projection


def fragments(
    cuts: Sequence[Cut], factors: Sequence[float], side: int, at_most: int
) -> Iterator[list[Cut]]:
    """Yields fragments of a page: the patches in boxes of a grid, at each scale.

    Args:
      cuts: the patches of the page at each scale.
      factors: by which the page was resized for each cut.
      side: of a patch in pixels.
      at_most: number of fragments, spread evenly over the page.
    """
    cells = []
    for cut, factor in zip(cuts, factors, strict=True):
        to_first = factors[0] / factor
        columns = (cut.x * to_first // (_WIDTH * side)).astype(np.int64)
        lines = (cut.y * to_first // (_HEIGHT * side)).astype(np.int64)
        cells.append(lines << 32 | columns)
    boxes, counts = np.unique(cells[0], return_counts=True)
    boxes = boxes[counts >= _LEAST]
    for box in boxes[evenly(len(boxes), at_most)]:
        yield [cut.take(np.flatnonzero(cell == box)) for cut, cell in zip(cuts, cells, strict=True)]
