"""benchmarks/README.md, made from the figures in benchmarks/results."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER / "README.md"
INTRODUCTION = """# Figures

Made by `python -m benchmarks.run`, from the files in `results/`; not typed. Medians of the rounds
(the range behind them); where two programs are compared, both ran alternately in one process or one
run. A figure that was to be reached says so. To measure again: `python -m benchmarks.run NAME`.
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
        "| figure | median | unit | range | wanted |",
        "|---|---|---|---|---|",
        *(_row(figure) for figure in result["figures"]),
        "",
    ]
    return "\n".join(rows)


def _row(figure: dict) -> str:
    spread = ""
    if figure["rounds"] > 1:
        spread = f"{_number(figure['low'])} to {_number(figure['high'])} ({figure['rounds']})"
    wanted = ""
    if "target" in figure:
        wanted = f"{figure['target']}: {'holds' if figure['holds'] else '**missed**'}"
    cells = (figure["name"], _number(figure["median"]), figure["unit"], spread, wanted)
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
