"""What 100 million pages cost to embed, store and search, from measured rates.

    python -m benchmarks.costs [--write] [--pages N] [--seconds-a-page S]

Reads pages.json (embedding), search-compact.json and search-milvus.json of benchmarks/results. A
rate without a figure there is left open. `--write` puts the section into docs/scaling.md.
"""

import argparse
import json
from pathlib import Path

from benchmarks.tables import RESULTS

PAGE = Path(__file__).parents[1] / "docs/scaling.md"
PAGES = 100_000_000
# The measured figures: file, and name in it.
EMBEDDING = ("pages", "ours, processor time")
EXACT = ("search-compact", "exact, CPU")
CODES = ("search-compact", "8-bit codes first, CPU")
WRITING = ("search-compact", "8-bit codes are written in, CPU")
INSERTING = ("search-milvus", "inserted into Milvus, CPU")
DATABASE = ("search-milvus", "size of the database")
# Numbers of a descriptor, queries of a search, and pages of the two benchmarks of search_compact.
WIDTH, QUERIES = 1024, 100
COMPACT_PAGES, MILVUS_PAGES = 1_000_000, 200_000
HEADING = "## What a large collection costs"
TEXT = """{heading}

Written by `python -m benchmarks.costs --write` for {pages:,} pages: the rates of one core, times
the number of pages. A core hour is an hour of one such core ({processor}).
Embedding, searching and writing divide over machines without exchange: each machine has its own
pages, and the nearest pages of all machines are merged. This command measures the rates:

    python -m benchmarks.run {names}

| what | measured on one core | {pages:,} pages |
|---|---|---|
{rows}

Descriptors have {width:,} numbers of 16 bits. Ids, labels and images are not counted. Milvus was
measured in a local file that keeps 32 bits a number; a cluster was not measured.
"""
OPEN = "not measured"


def figure(place: tuple[str, str]) -> float | None:
    """The median of a measured figure; None if it was not measured."""
    name, wanted = place
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    figures = json.loads(path.read_text())["figures"]
    return next((f["median"] for f in figures if f["name"] == wanted), None)


def processor() -> str:
    """The processor of the search benchmark."""
    path = RESULTS / "search-compact.json"
    if not path.exists():
        return OPEN
    machine = json.loads(path.read_text())["machine"]
    return f"{machine['processor']}, {', '.join(machine['instructions'])}"


def rows(pages: int, seconds_a_page: float | None) -> list[str]:
    """The rows of the table."""

    def row(what: str, seconds: float | None, each: float, unit: str) -> str:
        """A row: seconds for so many pages, scaled to all pages."""
        if seconds is None:
            return f"| {what} | {OPEN} | {OPEN} |"
        hours = seconds / each * pages / 3600
        return f"| {what} | {seconds:,.3g} s {unit} | {hours:,.3g} core hours |"

    million, inserted = f"for {COMPACT_PAGES:,} pages", f"for {MILVUS_PAGES:,} pages"
    size = figure(DATABASE)
    milvus = OPEN if size is None else f"{size * 2**30 / MILVUS_PAGES:,.0f} bytes a page"
    stored = OPEN if size is None else f"{size * 2**30 / MILVUS_PAGES * pages / 1e9:,.0f} GB"
    return [
        row("embed", seconds_a_page, 1, "a page"),
        row("write 8-bit codes", figure(WRITING), COMPACT_PAGES, million),
        row("insert into Milvus", figure(INSERTING), MILVUS_PAGES, inserted),
        f"| store descriptors | {2 * WIDTH:,} bytes a page | {2 * WIDTH * pages / 1e9:,.0f} GB |",
        f"| store 8-bit codes | {WIDTH + 4:,} bytes a page | {(WIDTH + 4) * pages / 1e9:,.0f} GB |",
        f"| store in Milvus | {milvus} | {stored} |",
        row(f"search {QUERIES} queries, exact", figure(EXACT), COMPACT_PAGES, million),
        row(f"search {QUERIES} queries, 8-bit codes first", figure(CODES), COMPACT_PAGES, million),
    ]


def section(pages: int = PAGES, seconds_a_page: float | None = None) -> str:
    """The section of docs/scaling.md.

    Args:
      seconds_a_page: CPU seconds to embed a page; None takes the measured figure.
    """
    if seconds_a_page is None:
        seconds_a_page = figure(EMBEDDING)
    return TEXT.format(
        heading=HEADING,
        pages=pages,
        names=" ".join(name for name, _ in (EMBEDDING, EXACT, INSERTING)),
        processor=processor(),
        width=WIDTH,
        rows="\n".join(rows(pages, seconds_a_page)),
    )


def write(text: str) -> None:
    """Puts the section at the end of docs/scaling.md."""
    before = PAGE.read_text().split(HEADING)[0].rstrip()
    PAGE.write_text(f"{before}\n\n{text}")


def main() -> None:
    """Prints the section; writes it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write it into {PAGE}")
    parser.add_argument("--pages", type=int, default=PAGES)
    parser.add_argument(
        "--seconds-a-page", type=float, default=None,
        help="CPU seconds to embed a page (default: the measured figure)",
    )  # fmt: skip
    args = parser.parse_args()
    text = section(args.pages, args.seconds_a_page)
    print(text)
    if args.write:
        write(text)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
