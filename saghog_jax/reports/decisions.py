"""Decisions of scholars about matches: decisions.csv, and the pages that it speaks of.

A page is known by its digest, if the file and the embeddings have digests, else by its name.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.csv_files import read_table
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval.embeddings import Embeddings

logger = logging.getLogger(__name__)

DECISIONS = ("accept", "reject", "unsure")
# Pages that a message names.
_NAMED = 3


class Decision(NamedTuple):
    """A line of decisions.csv.

    query, page: ids of the two pages when the decision was made.
    decision: one of `DECISIONS`.
    query_digest, page_digest: their `Manifest.digests`; empty in files of older versions.
    note: a remark of the scholar; empty in files without notes.
    group: the name of the group of accepted pages; empty in files without names.
    """

    query: str
    page: str
    decision: str
    query_digest: str = ""
    page_digest: str = ""
    note: str = ""
    group: str = ""


def read_decisions(path: str | os.PathLike) -> list[Decision]:
    """Reads a decisions.csv that a report exported, also if a spreadsheet has saved it.

    Capitals in decisions and names of columns do not matter.

    Raises:
      UserError: the file cannot be read, or a line is wrong; the message names the line.
    """
    header, rows = read_table(Path(path))
    header = [name.lower() for name in header]
    missing = [name for name in ("query", "page", "decision") if name not in header]
    if missing:
        raise UserError(
            f"{path} is not a decisions.csv: no column {', '.join(missing)}, only "
            f"{', '.join(map(repr, header))}"
        )
    decisions = []
    for line, cells in rows:
        row = dict(zip(header, cells))
        decision = row.get("decision", "").strip().lower()
        if decision not in DECISIONS:
            raise UserError(
                f"{path} line {line}: expected the columns query, page and decision (one of "
                f"{', '.join(DECISIONS)}); found the decision {decision!r}"
            )
        digests = (row.get(f"{name}_digest", "").strip().lower() for name in ("query", "page"))
        remarks = (row.get(name, "").strip() for name in ("note", "group"))
        decisions.append(Decision(row["query"], row["page"], decision, *digests, *remarks))
    return decisions


def of_pages(
    decisions: Sequence[Decision], queries: Embeddings, gallery: Embeddings
) -> dict[tuple[str, str], str]:
    """The decisions about these pages, by today's ids of query and match.

    A decision counts for each copy of a page. Among the pages of one collection, a decision about
    A and B is also one about B and A, unless the file has another one. Decisions about other pages
    are left out. Messages name both.
    """
    known: dict[tuple[str, str], str] = {}
    for pair, decision in _found(decisions, queries, gallery):
        known[pair] = decision
    if queries is gallery:
        return {(page, query): decision for (query, page), decision in known.items()} | known
    return known


def by_pair(decisions: Sequence[Decision], pages: Embeddings) -> dict[tuple[str, str], set[str]]:
    """All decisions about each pair of these pages, which stands once, in the order of names.

    Decisions about a page and its copy are left out.

    Raises:
      UserError: none of the decisions is about these pages.
    """
    ids = _Ids(pages)
    if decisions and not any(
        ids.find(d.query, d.query_digest) and ids.find(d.page, d.page_digest) for d in decisions
    ):
        raise UserError(
            f"none of the {len(decisions):,} decisions is about pages of {pages.folder}: is it the "
            "file of another collection?"
        )
    known: dict[tuple[str, str], set[str]] = {}
    for pair, decision in _found(decisions, pages, pages):
        if pair[0] != pair[1]:
            known.setdefault(tuple(sorted(pair)), set()).add(decision)
    return known


def _found(
    decisions: Sequence[Decision], queries: Embeddings, gallery: Embeddings
) -> Iterator[tuple[tuple[str, str], str]]:
    """Each decision by today's ids of query and match; messages name the pages that are absent."""
    ids = _Ids(queries), _Ids(gallery)
    absent: dict[str, None] = {}
    copies: dict[str, None] = {}
    left_out = 0
    for decision in decisions:
        pages = (decision.query, decision.query_digest), (decision.page, decision.page_digest)
        query_ids, page_ids = (of.find(*page) for of, page in zip(ids, pages, strict=True))
        for (name, _), same in zip(pages, (query_ids, page_ids), strict=True):
            if not same:
                absent[name] = None
            elif len(same) > 1:
                copies[", ".join(same)] = None
        left_out += not (query_ids and page_ids)
        yield from (((q, p), decision.decision) for q in query_ids for p in page_ids)
    if absent:
        logger.warning(
            f"{left_out:,} of {len(decisions):,} decisions are left out: {len(absent):,} of their "
            f"pages are not among the embedded pages: {_some(list(absent))}"
        )
    if copies:
        logger.info(f"decisions count for each copy of a page: {_some(list(copies), '; ')}")


def count(known: Mapping[tuple[str, str], str]) -> int:
    """The number of decided pairs of `of_pages`, where both directions are one."""
    return len({frozenset(pair) for pair in known})


class _Ids:
    """Finds the ids of pages."""

    def __init__(self, pages: Embeddings) -> None:
        self._names = set(pages.page_ids.tolist())
        self._by_digest: dict[str, list[str]] = {}
        for name, digest in zip(pages.page_ids.tolist(), pages.digests, strict=True):
            if digest:
                self._by_digest.setdefault(digest, []).append(name)

    def find(self, name: str, digest: str) -> list[str]:
        """The ids of the page; of all its copies if it is known by its digest."""
        if digest and self._by_digest:
            return self._by_digest.get(digest, [])
        return [name] if name in self._names else []


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = len(names) - _NAMED
    return separator.join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
