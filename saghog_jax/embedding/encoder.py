"""`PageEncoder`: pages in, page descriptors out, by the recipe of a run or an embeddings folder."""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from saghog_jax import sam
from saghog_jax.embedding import compact, patch_whitening
from saghog_jax.embedding.compact import Projection
from saghog_jax.embedding.describers import (
    Checkpoint,
    PatchBatch,
    PatchDescriber,
    describers_of,
)
from saghog_jax.embedding.pooler import PagePatches, PagePooler, PatchDescription, Pooling
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages.images import page_array
from saghog_jax.input_pipeline.pages.manifest import AUTO
from saghog_jax.input_pipeline.regions.backends import Backend, make_backend
from saghog_jax.input_pipeline.regions.page_check import checked_page
from saghog_jax.input_pipeline.regions.page_mask import find_mask
from saghog_jax.input_pipeline.store.page_views import cut_views
from saghog_jax.retrieval import embeddings
from saghog_jax.retrieval.descriptors import PageDescriptors, comparable
from saghog_jax.retrieval.whitening import Whitening
from saghog_jax.runs.checkpoint import params_digest
from saghog_jax.weights.packed import model_folder, names_in_the_box

__all__ = ["PageEncoder", "PatchBatch", "load_encoder"]

# Patches of a batch on the device, and the most pages mixed in it, as configs/embed.py has them.
BATCH_SIZE, PAGES_PER_BATCH = 1024, 16
Page = str | os.PathLike | Image.Image | np.ndarray


class PageEncoder:
    """Follows a `PageRecipe` with the describers of its parts.

    Args:
      recipe: of the page descriptors.
      describers: those of the recipe's parts in their order; further ones are pooled as well.
      whitenings: of the patch descriptors of each describer; by default none.
      projection: makes compact descriptors of the parts; needed if `recipe.compact` is above 0.
      batch_size, pages_per_batch, mesh: see configs/embed.py.
    """

    def __init__(
        self,
        recipe: PageRecipe,
        describers: Sequence[PatchDescriber],
        whitenings: Sequence[Whitening | None] | None = None,
        projection: Projection | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        pages_per_batch: int = PAGES_PER_BATCH,
        mesh: ConfigDict | None = None,
    ) -> None:
        self.recipe, self.describers = recipe, list(describers)
        self.whitenings = list(whitenings or [None] * len(self.describers))
        if recipe.compact and projection is None:
            raise ValueError("recipe.compact is above 0: compact descriptors need a projection")
        self.projection = projection.first(recipe.compact) if recipe.compact else None
        self._pooler = PagePooler(
            self.describers,
            Pooling(recipe.pooling, recipe.gmp_lambda, self.whitenings),
            batch_size,
            pages_per_batch,
            mesh or ConfigDict({"data": -1, "fsdp": 1}),
        )
        # Made when they are first needed.
        self._single: list[PatchDescription] = []
        self._backend: Backend | None = None

    @property
    def widths(self) -> list[int]:
        """Width of the pooled descriptor of each describer, at one scale."""
        return self._pooler.widths

    @property
    def reads_colours(self) -> bool:
        """Whether a describer reads the colours of patches, and not only their ink."""
        return any(describer.input == "page" for describer in self.describers)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights (or visual words) of each part, by its descriptor."""
        parts = zip(self.recipe.parts, self.describers, strict=False)
        return {part.descriptor: params_digest(d.variables) for part, d in parts}

    @property
    def made_by(self) -> dict:
        """What descriptors must share with this encoder's to be compared."""
        return comparable(self.recipe.to_json()) | {"digests": self.digests | self.projected_by}

    @property
    def projected_by(self) -> dict[str, str]:
        """The digest of the projection, under its name among digests; empty without one."""
        return {} if self.projection is None else {compact.NAME: self.projection.digest}

    def join(self, sums: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Page descriptors of pooled patch descriptors; see `compact.join`."""
        return compact.join(self.recipe, self.projection, sums)

    def patches(self, image: Page, polarity: str = AUTO) -> list[Cut]:
        """Cuts a page at each scale of the recipe.

        Args:
          image: a path, a PIL image, or an array uint8 [h, w, 3] (RGB) or [h, w] (grey).
          polarity: `dark_on_light`, `light_on_dark` (the page is inverted), or `auto` (found).

        Returns:
          the patches at each scale; without a patch where the page could not be cut at it.

        Raises:
          PageError: the image cannot be read, or no writing or handwriting is found on it.
          UserError: an unknown polarity.
        """
        return self._cuts(image, polarity, colours=True)

    def _cuts(self, image: Page, polarity: str, colours: bool) -> list[Cut]:
        """See `patches`; without colours where they are not read (`page_views.cut_views`)."""
        recipe, rule = self.recipe, self.recipe.cutting_rule
        page, _ = checked_page(page_array(image, recipe.max_pixels), polarity)
        mask = None
        if recipe.regions["backend"] != "none":
            path = Path(image) if isinstance(image, str | os.PathLike) else None
            regions = ConfigDict(recipe.regions)
            self._backend = self._backend or make_backend(regions)
            mask = find_mask(page, path, self._backend, regions)
        factors = recipe.factors()
        seeds = range(len(factors))
        page = np.ascontiguousarray(page)
        return filled(cut_views(page, mask, rule, factors, seeds, recipe.max_pixels, colours))

    def embed(self, images: Iterable[Page]) -> PageDescriptors:
        """Page descriptors float32 [p, d], unit rows, in the order of the images.

        Args:
          images: see `patches`.

        Raises:
          PageError: an image cannot be read or has no handwriting; names the image.
        """
        scales = len(self.recipe.scales)

        def cuts() -> Iterator[Cut]:
            for number, image in enumerate(images):
                try:
                    page_cuts = self._cuts(image, AUTO, self.reads_colours)
                    if not any(len(cut.patches) for cut in page_cuts):
                        raise PageError("no patch passed the rule (a blank page?)")
                except PageError as error:
                    name = image if isinstance(image, str | os.PathLike) else f"image {number}"
                    raise PageError(f"{name}: {error}") from None
                yield from page_cuts

        pooled = list(self.pool(cuts()))
        parts = range(len(self.recipe.parts))
        if not pooled:
            rows = self.join([[np.zeros((0, self.widths[i]), np.float32)] * scales for i in parts])
        else:
            rows = self.join(
                [
                    [np.stack([view[part] for view in pooled[j::scales]]) for j in range(scales)]
                    for part in parts
                ]
            )
        return PageDescriptors(rows, self.made_by)

    def pool(self, cuts: Iterator[Cut | int]) -> Iterator[list[np.ndarray]]:
        """Yields the pooled descriptors of each describer for each cut; see `PagePooler.pages`."""
        return self._pooler.pages(cuts)

    def describe(self, cuts: Sequence[Cut]) -> list[list[PagePatches]]:
        """Descriptors of the single patches of a page, for each part at each scale.

        Args:
          cuts: what `patches` returns.
        """
        if not self._single:
            parts = self.describers[: len(self.recipe.parts)]
            self._single = [PatchDescription(describer) for describer in parts]
        side = self.recipe.rule.patch_size
        return [[single.page(cut, side) for cut in cuts] for single in self._single]


def filled(cuts: Sequence[Cut | PageError | str]) -> list[Cut]:
    """A page's cuts at all scales; where the page could not be cut at a scale, one without patches.

    Raises:
      PageError: the page could be cut at no scale.
    """
    usable = next((cut for cut in cuts if isinstance(cut, Cut)), None)
    if usable is None:
        raise PageError(str(cuts[0]))
    return [cut if isinstance(cut, Cut) else usable.take(slice(0)) for cut in cuts]


def load_encoder(
    folder: str | os.PathLike, which: str = "last", checkpoint: str | os.PathLike = ""
) -> PageEncoder:
    """The encoder of a run folder, or of an embeddings folder with exactly that folder's recipe.

    Args:
      folder: a run folder of finetune, pretrain or convert, a packed model, an embeddings folder,
        or the name of a model in the box.
      which: checkpoint of a run folder, `last` or `best`.
      checkpoint: run folder of an embeddings folder's model, where it has moved.

    Raises:
      UserError: there is no such run or checkpoint, or it is not the one that made the embeddings.
    """
    sam.register_backend()
    folder = model_folder(folder)
    if (folder / "meta.json").is_file():
        meta = embeddings.read_meta(folder)
        return encoder_of_embeddings(meta, folder, checkpoint)
    model = Checkpoint(folder, which)
    recipe = model.recipe().resolved()
    describers = describers_of(model, recipe)
    projection = compact.of_run(model.folder, which, recipe, describers)
    return PageEncoder(recipe, describers, projection=projection)


def encoder_of_embeddings(
    meta: Mapping, folder: Path, checkpoint: str | os.PathLike = ""
) -> PageEncoder:
    """The encoder that made an embeddings folder, from its meta.json.

    Args:
      checkpoint: the run folder, where it is not at the place that `meta` names.

    Raises:
      UserError: the embeddings are not of `embed`; the run folder does not hold their model.
    """
    recipe = recipe_of_embeddings(meta, folder).resolved()
    path = model_folder(checkpoint) if checkpoint else run_folder_of(meta, folder)
    model = Checkpoint(path, meta["which"])
    other = f"{model.folder} does not hold the model that made the embeddings"
    try:
        describers = _describers(model, recipe, meta["model"])
    except UserError as error:
        raise UserError(f"{other}: {error}") from None
    digests = [params_digest(describer.variables) for describer in describers]
    stored = dict(meta["digests"])
    projected_by = stored.pop(compact.NAME, None)
    if digests != list(stored.values()):
        raise UserError(other)
    projection = compact.of_run(model.folder, model.which, recipe, describers)
    whitenings = None
    if recipe.patch_whitening != "none":
        whitenings = patch_whitening.load(folder / patch_whitening.FILE, describers, digests)
    encoder = PageEncoder(recipe, describers, whitenings, projection)
    if encoder.projected_by.get(compact.NAME) != projected_by:
        raise UserError(f"{model.folder} has another projection than the one of the embeddings")
    return encoder


def _describers(model: Checkpoint, recipe: PageRecipe, name: str) -> list[PatchDescriber]:
    """The describers of an embeddings folder, by the name of its model."""
    if name in ("random", "pretrained"):
        compared = model.compared(name, recipe)
        if compared is not None:
            return [compared]
    return describers_of(model, recipe)


def recipe_of_embeddings(meta: Mapping, folder: Path) -> PageRecipe:
    """The recipe that meta.json of an embeddings folder records.

    Raises:
      UserError: it records none.
    """
    if "recipe" not in meta:
        raise UserError(f"meta.json of {folder} has no recipe: it was not written by embed")
    return PageRecipe.from_json(meta["recipe"])


def run_folder_of(meta: Mapping, folder: Path) -> Path:
    """The run folder of an embeddings folder's model; recorded relative to the folder.

    A model in the box is recorded by its name.
    """
    if meta["checkpoint_folder"] in names_in_the_box():
        return model_folder(meta["checkpoint_folder"])
    beside = folder / meta["checkpoint_folder"]
    # Older versions recorded the path as it was given.
    return beside if beside.exists() else Path(meta["checkpoint_folder"])
