"""The Python API besides encoders, embeddings and stages: nearest pages, metrics, evidence."""

from os import PathLike

import numpy as np

from saghog_jax.embedding.encoder import Page, PageEncoder
from saghog_jax.evidence.gather import mean_descriptor
from saghog_jax.evidence.match import DescribedPage, match_evidence
from saghog_jax.evidence.records import Evidence
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.descriptors import PageDescriptors, check_alike
from saghog_jax.retrieval.embeddings import Embeddings, check_comparable, load_embeddings
from saghog_jax.retrieval.ranking import score_rows
from saghog_jax.retrieval.results import groups_of, labels_of
from saghog_jax.retrieval.search import search


def nearest(
    queries: PageDescriptors | Embeddings | np.ndarray,
    gallery: Embeddings,
    k: int = 10,
    force: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k pages of a gallery that are most similar to each query.

    Args:
      queries: what `PageEncoder.embed` returns, or embeddings. A plain array float32 [q, d] is
        taken as it is: nothing tells how it was made.
      gallery: what `load_embeddings` returns.
      k: at least 1; at most the size of the gallery is used.
      force: other recipes or weights are a warning instead of an error.

    Returns:
      rows of the gallery int64 [q, k] and cosine similarities float32 [q, k], best first. A query
      that is itself in the gallery is found there.

    Raises:
      UserError: queries and gallery were made by different recipes or weights, or have other
        widths.
    """
    if isinstance(queries, Embeddings):
        check_comparable(queries, gallery, force)
        descriptors = queries.descriptors
    else:
        descriptors = np.asarray(queries)
        if descriptors.ndim != 2 or descriptors.shape[1] != gallery.descriptors.shape[1]:
            raise UserError(
                f"queries are {list(descriptors.shape)}, the gallery {gallery.folder} holds "
                f"descriptors of width {gallery.descriptors.shape[1]}"
            )
        if getattr(queries, "made_by", None):
            names = "the query", str(gallery.folder)
            check_alike(queries.made_by, gallery.made_by, names, force)
    return search(descriptors, gallery.descriptors, k)


def evaluate(
    embeddings: Embeddings | str | PathLike, relevance: str = "writer", exclude_group: str = ""
) -> dict[str, float | int]:
    """Retrieval metrics of labelled embeddings: every page is a query, all others are the gallery.

    Args:
      embeddings: what `load_embeddings` returns, or the folder.
      relevance: column of the manifest whose equal values make two pages relevant to each other.
      exclude_group: column; pages that share its value with the query are not in its gallery.

    Returns:
      `map`, `top1` and the other metrics of `retrieval.metrics.summarize`.

    Raises:
      UserError: the folder or a column does not exist.
    """
    if not isinstance(embeddings, Embeddings):
        embeddings = load_embeddings(embeddings)
    labels = labels_of(embeddings, relevance)
    groups = groups_of(embeddings, exclude_group)
    return metrics.summarize(
        metrics.evaluate(score_rows(np.asarray(embeddings.descriptors)), labels, groups)
    )


def explain(
    encoder: PageEncoder,
    query: Page,
    match: Page,
    gallery: Embeddings | None = None,
    pairs: int = 6,
) -> Evidence:
    """The evidence of two pages: what each patch contributes, and pairs of similar patches.

    Args:
      encoder: describes both pages.
      query, match: images, see `PageEncoder.patches`.
      gallery: the similarity is explained relative to the mean of its pages; by default to zero.
      pairs: most pairs of similar patches.

    Raises:
      PageError: an image cannot be read, or has no handwriting.
      UserError: the patches are whitened, or pooled otherwise than by sum or mean; the gallery was
        made by another recipe.
    """
    recipe = encoder.recipe
    if recipe.pooling not in ("sum", "mean") or recipe.patch_whitening != "none":
        raise UserError("evidence needs pooling sum or mean, and no patch whitening")
    pages = tuple(
        DescribedPage(encoder, encoder.patches(image), recipe.factors()) for image in (query, match)
    )
    descriptors = tuple(page.descriptor for page in pages)
    mean = np.zeros_like(descriptors[0])
    if gallery is not None:
        check_alike(encoder.made_by, gallery.made_by, ("the encoder", str(gallery.folder)))
        mean = mean_descriptor(gallery.descriptors)
    return match_evidence(pages, descriptors, mean, None, pairs)
