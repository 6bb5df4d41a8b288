"""The rows of the table of metrics: descriptors, whitening, re-ranking and the evaluation.

Every combination of descriptors, whitening and re-ranking is a separate row, so that the plain
metrics always stand beside those after processing.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import metrics, rerank, whitening
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings, check_comparable, load_embeddings
from saghog_jax.retrieval.ranking import ScoreRows, score_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The metrics of one combination.

    Attributes:
      name: model of the descriptors.
      whitening, reranking: the processing, in words for the table.
      descriptors: float32 after whitening, else as they were embedded.
      scores: after re-ranking.
      evaluation: metrics of each query.
      figures: result of `metrics.summarize`.
      intervals: 95 % bootstrap intervals over labels.
    """

    name: str
    whitening: str
    reranking: str
    descriptors: Float[np.ndarray, "p k"]
    scores: ScoreRows
    evaluation: metrics.Evaluation
    figures: dict[str, float | int]
    intervals: dict[str, tuple[float, float]]


def check_choices(config: ConfigDict) -> None:
    """Checks the choices of a retrieval config.

    Raises:
      UserError: a field has an unknown value or is outside of its range.
    """
    choices = {
        "relevance": (config.relevance, ("writer", "page")),
        "whitening.mode": (config.whitening.mode, whitening.MODES),
        "rerank.method": (config.rerank.method, rerank.METHODS),
        "convention": (config.convention, metrics.CONVENTIONS),
    }
    for field, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"config.{field} is {value!r}, known: {', '.join(known)}")
    if config.whitening.mode == "inductive" and not config.whitening.fit:
        raise UserError(
            "config.whitening.mode=inductive needs config.whitening.fit: an embeddings folder of "
            "training pages by the same checkpoint"
        )
    if config.top_k < 1 or not config.ks or min(config.ks) < 1:
        raise UserError(f"config.top_k={config.top_k}, config.ks={tuple(config.ks)}: at least 1")
    for name in ("k", "k1", "layers", "gamma"):
        if config.rerank[name] <= 0:
            raise UserError(f"config.rerank.{name}={config.rerank[name]} must be positive")
    if config.rerank.sequential and (
        config.rerank.method not in rerank.SEQUENTIAL
        or config.exclude_group
        or config.rerank.choose_on
    ):
        raise UserError(
            f"config.rerank.sequential is for config.rerank.method={' or '.join(rerank.SEQUENTIAL)}"
            f", not {config.rerank.method!r}, without exclude_group and choose_on"
        )


def labels_of(embeddings: Embeddings, relevance: str) -> Int[np.ndarray, " p"]:
    """Labels int64 [p], equal for pages that are relevant to each other; -1 = unknown."""
    if relevance == "page":
        return metrics.encode_labels(embeddings.writers, embeddings.pages)
    return metrics.encode_labels(embeddings.writers)


def groups_of(embeddings: Embeddings, column: str) -> Int[np.ndarray, " p"] | None:
    """Groups int64 [p], which exclude each other from the gallery; -1 = no group.

    None if no column is named.
    """
    return metrics.encode_labels(embeddings.column(column)) if column else None


def all_results(
    embeddings: Embeddings, config: ConfigDict
) -> tuple[list[Result], whitening.Whitening | None]:
    """The metrics of an embeddings folder: plain, after whitening, after re-ranking.

    Returns:
      the rows, and the whitening; None without whitening.
    """
    labels = labels_of(embeddings, config.relevance)
    groups = groups_of(embeddings, config.exclude_group)

    def result(processing: tuple[str, str], x: np.ndarray, scores: ScoreRows) -> Result:
        evaluation = metrics.evaluate(scores, labels, groups, config.ks)
        figures = metrics.summarize(evaluation, config.convention)
        intervals = metrics.confidence(evaluation, labels, config.bootstrap)
        return Result(embeddings.name, *processing, x, scores, evaluation, figures, intervals)

    x, protocol = np.asarray(embeddings.descriptors), "none"
    results = [result((protocol, "none"), x, score_rows(x))]
    fitted, source = _whitening(embeddings, config)
    if fitted is not None:
        dims = f"{len(fitted.variances)} dims from {fitted.pages} pages"
        protocol = f"{config.whitening.mode}, {dims}{source}"
        x = whitening.apply(fitted, x)
        results.append(result((protocol, "none"), x, score_rows(x)))
    method = config.rerank.method
    if method != "none":
        params, origin = _rerank_params(embeddings, config, fitted)
        values = ", ".join(f"{name} {value:g}" for name, value in params.items())
        sequential = config.rerank.sequential
        origin += ", row after row: leaks the order of pages" if sequential else ""
        scores = rerank.rerank(method, unit_rows(x), params, groups, sequential)
        results.append(result((protocol, f"{method} ({values}; {origin})"), x, scores))
    return results, fitted


def unit_rows(x: Float[np.ndarray, "p d"]) -> Float32[np.ndarray, "p d"]:
    """L2-normalised rows, the input of re-ranking."""
    return l2_normalize(np.asarray(x, np.float32))


def _whitening(
    embeddings: Embeddings, config: ConfigDict
) -> tuple[whitening.Whitening | None, str]:
    """The whitening of the config, and the words that name its training pages."""
    if config.whitening.mode == "none":
        return None, ""
    if config.whitening.mode == "transductive":
        return _fit(embeddings, config), ""
    path = Path(config.whitening.fit)
    if path.suffix != ".npz":
        training = load_embeddings(path)
        check_comparable(training, embeddings, config.force)
        return _fit(training, config), f" of {path}"
    fitted, checkpoint = whitening.load(path)
    known, width = embeddings.meta.get("checkpoint", ""), embeddings.descriptors.shape[1]
    if len(fitted.mean) != width or (checkpoint and known and checkpoint != known):
        raise UserError(
            f"{path} was fitted on descriptors of width {len(fitted.mean)} of checkpoint "
            f"{checkpoint or 'unknown'}; {embeddings.folder} has width {width} of "
            f"{known or 'unknown'}"
        )
    return fitted, f" ({path})"


def _fit(embeddings: Embeddings, config: ConfigDict) -> whitening.Whitening | None:
    shape = embeddings.descriptors.shape
    k, remark = whitening.choose_dim(config.whitening.dim, *shape, config.whitening.only_beyond)
    if remark:
        logger.warning(f"note: {embeddings.name}: {remark}")
    return whitening.fit(embeddings.descriptors, k) if k else None


def _rerank_params(
    embeddings: Embeddings,
    config: ConfigDict,
    fitted: whitening.Whitening | None,
) -> tuple[dict[str, float], str]:
    """The parameters of re-ranking, and the words that tell their origin."""
    method, folder = config.rerank.method, config.rerank.choose_on
    if not folder:
        return {name: config.rerank[name] for name in rerank.GRID[method]}, "given"
    training = load_embeddings(folder)
    check_comparable(training, embeddings, config.force)
    if config.whitening.mode == "transductive":
        fitted = _fit(training, config)
    x = np.asarray(training.descriptors)
    x = unit_rows(x if fitted is None else whitening.apply(fitted, x))
    labels = labels_of(training, config.relevance)
    try:
        params = rerank.choose(method, x, labels, groups_of(training, config.exclude_group))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    return params, f"chosen on {folder}"
