"""One row of the table of figures: some descriptors, what was done to them, and how they answered.

Every combination of descriptors, whitening and re-ranking is a row of its own, so that plain
figures always stand beside processed ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import metrics, rerank, whitening
from saghog_jax.retrieval.embeddings import Embeddings, check_comparable, load_embeddings
from saghog_jax.retrieval.ranking import ScoreRows, score_rows


@dataclass(frozen=True)
class Result:
    """Figures of one kind of descriptors; `figures` is what `metrics.summarize` gives."""

    name: str
    whitening: str
    reranking: str
    descriptors: Float[np.ndarray, "p k"]  # float32, after whitening
    scores: ScoreRows  # after re-ranking
    evaluation: metrics.Evaluation
    figures: dict[str, float | int]
    intervals: dict[str, tuple[float, float]]  # 95 %, bootstrap over labels


def check_choices(config: ConfigDict) -> None:
    """Names a field of the config that holds what it cannot hold.

    Raises:
      UserError: such a field, its value and what is known.
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
    """int64 [p], equal for pages that are relevant to each other, -1 = unknown."""
    if relevance == "page":
        return metrics.encode_labels(embeddings.writers, embeddings.pages)
    return metrics.encode_labels(embeddings.writers)


def groups_of(embeddings: Embeddings, column: str) -> Int[np.ndarray, " p"] | None:
    """int64 [p], equal for pages that never answer each other, -1 = of no group; None without."""
    return metrics.encode_labels(embeddings.column(column)) if column else None


def all_results(
    embeddings: Embeddings, config: ConfigDict, log: Callable[[str], None] = print
) -> tuple[list[Result], whitening.Whitening | None]:
    """The plain figures of an embeddings folder, then the whitened, then the re-ranked ones.

    Returns:
      the rows, and the whitening where one was fitted.
    """
    labels = labels_of(embeddings, config.relevance)
    groups = groups_of(embeddings, config.exclude_group)

    def result(done: tuple[str, str], x: np.ndarray, scores: ScoreRows) -> Result:
        evaluation = metrics.evaluate(scores, labels, groups, config.ks)
        figures = metrics.summarize(evaluation, config.convention)
        intervals = metrics.confidence(evaluation, labels, config.bootstrap)
        return Result(embeddings.name, *done, x, scores, evaluation, figures, intervals)

    x, whitened = np.asarray(embeddings.descriptors), "none"
    results = [result((whitened, "none"), x, score_rows(x))]
    fitted, source = _whitening(embeddings, config, log)
    if fitted is not None:
        whitened = (
            f"{config.whitening.mode}, {len(fitted.variances)} dims from {fitted.pages} pages"
        )
        whitened += source
        x = whitening.apply(fitted, x)
        results.append(result((whitened, "none"), x, score_rows(x)))
    method = config.rerank.method
    if method != "none":
        params, chosen = _rerank_params(embeddings, config, fitted, log)
        mine = ", ".join(f"{name} {value:g}" for name, value in params.items())
        unit = score_input(x)
        sequential = config.rerank.sequential
        chosen += ", row after row: leaks the order of pages" if sequential else ""
        scores = rerank.rerank(method, unit, params, groups, sequential)
        results.append(result((whitened, f"{method} ({mine}; {chosen})"), x, scores))
    return results, fitted


def score_input(x: Float[np.ndarray, "p d"]) -> Float[np.ndarray, "p d"]:
    """Unit rows, as re-ranking expects them."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12))


def _whitening(
    embeddings: Embeddings, config: ConfigDict, log: Callable[[str], None]
) -> tuple[whitening.Whitening | None, str]:
    if config.whitening.mode == "none":
        return None, ""
    if config.whitening.mode == "transductive":
        return _fit(embeddings, config, log), ""
    path = Path(config.whitening.fit)
    if path.suffix != ".npz":
        training = load_embeddings(path)
        check_comparable(training, embeddings)
        return _fit(training, config, log), f" of {path}"
    fitted, checkpoint = whitening.load(path)
    known, width = embeddings.meta.get("checkpoint", ""), embeddings.descriptors.shape[1]
    if len(fitted.mean) != width or (checkpoint and known and checkpoint != known):
        raise UserError(
            f"{path} was fitted on descriptors of width {len(fitted.mean)} of checkpoint "
            f"{checkpoint or 'unknown'}; {embeddings.folder} has width {width} of "
            f"{known or 'unknown'}"
        )
    return fitted, f" ({path})"


def _fit(
    embeddings: Embeddings, config: ConfigDict, log: Callable[[str], None]
) -> whitening.Whitening | None:
    shape = embeddings.descriptors.shape
    k, remark = whitening.choose_dim(config.whitening.dim, *shape, config.whitening.only_beyond)
    if remark:
        log(f"note: {embeddings.name}: {remark}")
    return whitening.fit(embeddings.descriptors, k) if k else None


def _rerank_params(
    embeddings: Embeddings,
    config: ConfigDict,
    fitted: whitening.Whitening | None,
    log: Callable[[str], None],
) -> tuple[dict[str, float], str]:
    method, where = config.rerank.method, config.rerank.choose_on
    if not where:
        return {name: config.rerank[name] for name in rerank.GRID[method]}, "given"
    training = load_embeddings(where)
    check_comparable(training, embeddings)
    if config.whitening.mode == "transductive":
        fitted = _fit(training, config, log)
    x = np.asarray(training.descriptors)
    x = score_input(x if fitted is None else whitening.apply(fitted, x))
    labels = labels_of(training, config.relevance)
    try:
        params = rerank.choose(method, x, labels, groups_of(training, config.exclude_group))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return params, f"chosen on {where}"
