"""benchmarks/README.md, made from the figures in benchmarks/results."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER / "README.md"
INTRODUCTION = """# Figures

`python -m benchmarks.run` makes this page from the files in `results/`; nothing is typed by hand.
Figures are medians of the rounds; the range gives the lowest and the highest round (number of
rounds). If two programs are compared, both ran alternately in one process or one run. If a figure
had a target, the last column says whether the figure reaches it. "ours" is this program. To measure
again: `python -m benchmarks.run NAME`.
"""


def render() -> str:
    """The text of the README: a section a result, in the order of names."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([INTRODUCTION, *(_section(result) for result in results)])


def _section(result: dict) -> str:
    machine, versions = result["machine"], result["versions"]
    instructions = ", ".join(machine["instructions"])
    rows = [
        f"## {result['name']}\n",
        f"`{result['command']}` · {result['date']} · {machine['cores']} cores of "
        f"{machine['processor']} ({instructions}), {machine['memory_gib']} GiB · "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}\n",
        "| figure | median | unit | range | target |",
        "|---|---|---|---|---|",
        *(_row(figure) for figure in result["figures"]),
        "",
    ]
    return "\n".join(rows)


def _row(figure: dict) -> str:
    spread = ""
    if figure["rounds"] > 1:
        spread = f"{_number(figure['low'])} to {_number(figure['high'])} ({figure['rounds']})"
    target = ""
    if "target" in figure:
        target = f"{figure['target']}: {'holds' if figure['holds'] else '**missed**'}"
    cells = (figure["name"], _number(figure["median"]), figure["unit"], spread, target)
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
