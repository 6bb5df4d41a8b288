"""The evidence of one match: what each patch contributes to the similarity of two pages.

A page is described again patch by patch (`DescribedPage`), and the similarity is divided among the
patches (attribution.py).
"""

from collections.abc import Sequence

import numpy as np

from saghog_jax.embedding.encoder import PageEncoder
from saghog_jax.evidence.attribution import (
    Clusters,
    Part,
    Projected,
    contributions,
    page_total,
)
from saghog_jax.evidence.like_patches import like_patches, with_ink
from saghog_jax.evidence.records import Evidence, PageEvidence
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.retrieval.whitening import Whitening


class DescribedPage:
    """A page described patch by patch.

    Args:
      encoder: describes the patches and gives the recipe.
      cuts: the patches at each scale of the recipe.
      factors: by which the page was resized before each cut (`PageRecipe.factors`).
    """

    def __init__(self, encoder: PageEncoder, cuts: Sequence[Cut], factors: Sequence[float]) -> None:
        recipe = encoder.recipe
        self._factors = factors
        # Every part of the recipe at each of its scales, as `PageRecipe.join` concatenates them.
        self.parts: list[Part] = []
        self._scales: list[int] = []
        self._encoder, self._projected = encoder, []
        # The first scale alone, with the weight of each descriptor in the similarity.
        self.first_scale: list[Part] = []
        descriptions = zip(recipe.parts, encoder.describers, encoder.describe(cuts), strict=False)
        for part, describer, pages in descriptions:
            clusters = Clusters(describer.centroids, describer.intra_normalize)
            taken = recipe.scales_of(part)
            for scale, page in enumerate(pages[:taken]):
                total = page_total(page, clusters)
                weight = (1 if recipe.compact else part.weight) / taken
                self.parts.append(Part(page, clusters, total, part.power, weight))
                self._scales.append(scale)
            own = self.parts[-taken]
            self.first_scale.append(own._replace(share=part.weight))
        if encoder.projection is not None:
            for part, weight in zip(recipe.parts, recipe.weights_of(self._sums())[0], strict=True):
                by = encoder.projection.parts[part.descriptor]
                self._projected.append(Projected(recipe.scales_of(part), by, float(weight)))
        rule = recipe.rule
        # Of the patches of the first scale.
        self.with_ink = with_ink(cuts[0], rule.patch_size, rule.min_ink)

    @property
    def descriptor(self) -> np.ndarray:
        """The page descriptor of the recipe, float32 [D], a unit vector."""
        return self._encoder.join(self._sums())[0]

    def _sums(self) -> list[list[np.ndarray]]:
        """The pooled descriptors of the page, as `PageRecipe.join` takes them."""
        sums = [part.total[None] for part in self.parts]
        starts = [i for i, scale in enumerate(self._scales) if scale == 0]
        ends = [*starts[1:], len(sums)]
        return [sums[i:j] for i, j in zip(starts, ends, strict=True)]

    def evidence(
        self, target: np.ndarray, whitening: Whitening | None, mean: float
    ) -> PageEvidence:
        """What each patch contributes to the similarity; patches of the first scale come first.

        Args:
          target: see `attribution.contributions`.
          whitening: applied to the page descriptors before they were compared.
          mean: the page's mean similarity to the pages of the gallery.
        """
        scales = len(self._factors)
        by_part = contributions(self.parts, target, whitening, self._projected)
        by_scale = [
            sum(x for x, at in zip(by_part, self._scales, strict=True) if at == scale)
            for scale in range(scales)
        ]
        summed = np.concatenate(by_scale)
        pages = [part.page for part in self.parts[:scales]]
        scaled = list(zip(pages, self._factors, strict=True))
        place = np.concatenate([(page.place / factor).astype(int) for page, factor in scaled])
        side = np.concatenate(
            [np.full(len(page.place), page.side / factor) for page, factor in scaled]
        )
        return PageEvidence(place, side, summed, mean)


def match_evidence(
    pages: tuple[DescribedPage, DescribedPage],
    descriptors: tuple[np.ndarray, np.ndarray],
    mean: np.ndarray,
    whitening: Whitening | None,
    pairs: int,
) -> Evidence:
    """The evidence of a match.

    Similar patches are looked for at the first scale, among patches with ink in their middle;
    patches of all scales contribute.

    Args:
      pages: query and match.
      descriptors: their unit descriptors float32 [k], as they were compared.
      mean: float32 [k], the mean of the unit descriptors of the gallery.
      whitening: applied to the page descriptors before they were compared.
      pairs: most pairs of similar patches.
    """
    query, match = (
        page.evidence(other - mean, whitening, float(own @ mean))
        for page, own, other in zip(pages, descriptors, reversed(descriptors), strict=True)
    )
    of_first = [
        side.contributions[: len(page.with_ink)] * page.with_ink
        for side, page in zip((query, match), pages, strict=True)
    ]
    rows, alike = like_patches(*(page.first_scale for page in pages), *of_first, pairs)
    similarity = float(descriptors[0] @ descriptors[1])
    return Evidence(similarity, query, match, rows, alike)
