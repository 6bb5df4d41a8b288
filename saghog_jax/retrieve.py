"""Stage 4: page descriptors to metrics.json, per_query.csv, ranking.csv and report.html."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.evidence import gather
from saghog_jax.evidence.records import Compared
from saghog_jax.reports import annotations, decisions, evaluation, tables
from saghog_jax.retrieval import whitening
from saghog_jax.retrieval.embeddings import Embeddings, load_embeddings
from saghog_jax.retrieval.ranking import Ranking, nearest
from saghog_jax.retrieval.results import all_results, check_choices, groups_of, labels_of
from saghog_jax.runs.stage_result import NextStage, StageResult

logger = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Evaluates `config.embeddings` (and those of `config.compare`) and writes the results.

    The ranking and the report are those of the last row of the table: whitened and re-ranked where
    the config asks for it. Pages without labels get both, without figures.

    Raises:
      UserError: embeddings that are missing or damaged, a column or choice that does not exist.
    """
    check_choices(config)
    main = load_embeddings(config.embeddings)
    labels = labels_of(main, config.relevance)
    groups = groups_of(main, config.exclude_group)
    workdir.mkdir(parents=True, exist_ok=True)
    results = []
    for embeddings in _compared(config):
        results += all_results(embeddings, _plain_unless_transductive(config))[0]
    main_results, fitted = all_results(main, config)
    results += main_results
    if fitted is not None:
        whitening.save(fitted, workdir / "whitening.npz", main.meta.get("checkpoint", ""))
    everyone = np.arange(len(main))
    rows, similarity = nearest(results[-1].scores, everyone, groups, len(main), config.top_k)
    ranking = Ranking(labels, labels, rows, 1 - similarity)
    tables.write_per_query(workdir / "per_query.csv", main, results[-1].evaluation)
    tables.write_ranking(workdir / "ranking.csv", main, main, ranking)
    if config.annotations:
        decided = decisions.read_decisions(config.decisions) if config.decisions else []
        known = decisions.of_pages(decided, main, main)
        where = workdir / "annotations.json"
        annotations.write(where, main, main, ranking, decisions=known)
        logger.info(f"annotations: {where}, with {decisions.count(known):,} decisions")
    tables.write_metrics(workdir / "metrics.json", config, main, results, labels)
    compared = Compared(main, main, *[results[-1].descriptors] * 2, fitted, ranking)
    hardness = evaluation.hardness(results[-1].evaluation)
    # Without labels, the queries with the nearest answers come first.
    hardness = hardness or dict(enumerate(ranking.distances[:, :1].sum(1).tolist()))
    order = sorted(hardness, key=lambda row: (hardness[row], row))
    matches = gather.gather(compared, order, config.report, workdir)
    path = evaluation.write(workdir, main, results, ranking, config, matches)
    for line in (*tables.describe(results, labels), f"report: {path}"):
        logger.info(line)
    return StageResult(
        workdir,
        paths={"metrics": workdir / "metrics.json", "report": path},
        counts={"pages": len(main)},
        following=_following(main),
    )


def _following(main: Embeddings) -> tuple[NextStage, ...]:
    """The embedding of new pages by the same recipe; none where no recipe is known."""
    if "recipe" not in main.meta:
        return ()
    # Imported late, when all results are written: they load jax.
    from saghog_jax.embedding.encoder import recipe_of_embeddings, run_folder_of
    from saghog_jax.embedding.run_recipe import default_recipe, read_recipe

    recipe = recipe_of_embeddings(main.meta, main.folder)
    if recipe.patch_whitening != "none":
        return ()
    folder = run_folder_of(main.meta, main.folder).resolve()
    known = read_recipe(folder) or default_recipe(recipe.parts[0].descriptor, recipe.input)
    regions = ConfigDict(dict(recipe.regions))
    return (
        NextStage(
            "embed",
            sections={} if known.regions == recipe.regions else {"regions": regions},
            fields={
                "data.pages": "new",
                "checkpoint": folder,
                **({} if main.meta["which"] == "last" else {"which": main.meta["which"]}),
                **recipe.fields_beside(known),
            },
            variant="plain",
            workdir=Path("runs/new/embed").resolve(),
            remark="for new pages, in a folder `new`",
        ),
    )


def _compared(config: ConfigDict) -> Iterator[Embeddings]:
    for where in config.compare:
        folder = Path(where.replace("{embeddings}", config.embeddings))
        if folder.is_dir():
            yield load_embeddings(folder)
        elif "{embeddings}" not in where:
            logger.info(f"note: no embeddings to compare with at {folder}")


def _plain_unless_transductive(config: ConfigDict) -> ConfigDict:
    # A whitening fitted elsewhere belongs to one checkpoint; re-ranking is judged on the main one.
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain.rerank.method = "none"
        if config.whitening.mode == "inductive":
            plain.whitening.mode = "none"
    return plain
