"""report.html of a run: curves of its metrics, pictures of its task, and its config.

The file needs neither a network nor scripts. It is replaced whenever it is written.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.nested import flat
from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.templates import render

REPORT = "report.html"
NO_PICTURES = (
    "Pictures stand here when a run of one process has ended, or after: python -m saghog_jax.main "
    "--config=configs/show.py --config.checkpoint=THIS_FOLDER"
)
# Size of a chart and its margins, in units of the SVG.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 460, 200, 60, 24, 8
# Points of a curve that show their values under the mouse pointer, at most.
_HINTS = 400
# Titles of the charts in their order, and their metrics. Other metrics get a chart each.
CHARTS = (
    ("loss", ("loss", "validation_loss")),
    ("retrieval of held-out pages", ("validation_map", "validation_top1")),
    ("learning rate", ("learning_rate",)),
    ("gradient norm", ("grad_norm",)),
    ("patches a second", ("patches_per_second",)),
    ("share of time waiting for data", ("data_wait_share",)),
    ("memory at most, GiB", ("memory_gib",)),
)
_NO_CHART = {"best_step"}

Points = Sequence[tuple[int, float]]  # step and value


class _Curve(NamedTuple):
    """A curve as the template draws it.

    style: suffix of its CSS class.
    label: its entry in the legend.
    points: coordinates of its polyline.
    hints: x, y and text of the points that show their values.
    """

    style: str
    label: str
    points: str
    hints: list[tuple[float, float, str]]


class _Chart(NamedTuple):
    """A chart as the template draws it.

    rows: y and text of the horizontal lines.
    ends: x, anchor and text of the first and the last step.
    """

    title: str
    rows: list[tuple[float, str]]
    ends: list[tuple[float, str, str]]
    curves: list[_Curve]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT


def write(folder: Path, pictures: Sequence[Picture] = (), note: str = "") -> Path:
    """Writes FOLDER/report.html from metrics.jsonl and config.json of the folder.

    Args:
      folder: a run folder.
      pictures: shown in this order.
      note: a sentence shown above the pictures.

    Returns:
      the path of the report.
    """
    config = json.loads((folder / "config.json").read_text())
    records = read_metrics(folder / "metrics.jsonl")
    page = render(
        "run.html",
        title=f"{config['stage']}: {folder.parent.name}/{folder.name}",
        summary=_summary(records, config),
        charts=list(_charts(records)),
        note=note,
        pictures=[picture._asdict() | {"source": _data_uri(picture.png)} for picture in pictures],
        fields=[
            (name, json.dumps(value, ensure_ascii=False))
            for name, value in sorted(flat(config).items(), key=lambda item: item[0].split("."))
        ],
    )
    with atomic_write(folder / REPORT, "w") as file:
        file.write(page)
    return folder / REPORT


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The complete lines of a metrics.jsonl; empty if the file does not exist."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # an incomplete line, as a killed process leaves it
    return records


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _summary(records: list[dict[str, float]], config: dict) -> str:
    if not records:
        return f"No step of {config['total_steps']:,} has been logged yet."
    last = records[-1]["step"]
    patches = last * config["global_batch_size"]
    text = f"Step {last:,} of {config['total_steps']:,}; {patches:,} patches seen"
    losses = [record["loss"] for record in records if "loss" in record]
    return f"{text}; loss {losses[0]:.4g} at first, {losses[-1]:.4g} now." if losses else f"{text}."


def _charts(records: list[dict[str, float]]) -> Iterator[_Chart]:
    logged = dict.fromkeys(name for record in records for name in record if name != "step")
    known = {name for _, names in CHARTS for name in names} | _NO_CHART
    others = [(name.replace("_", " "), (name,)) for name in logged if name not in known]
    for title, names in [*CHARTS, *others]:
        curves = {
            name: [(r["step"], r[name]) for r in records if name in r and math.isfinite(r[name])]
            for name in names
        }
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            yield _chart(title, curves, named=len(names) > 1)


def _chart(title: str, curves: Mapping[str, Points], named: bool) -> _Chart:
    """The chart of one or two curves; `named`: the legend names them."""
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    first, last = min(steps), max(steps)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9

    def x(step: float) -> float:
        return _LEFT + (step - first) / max(last - first, 1) * (_WIDTH - _LEFT - _MARGIN)

    def y(value: float) -> float:
        return _MARGIN + (high - value) / (high - low) * (_HEIGHT - _BOTTOM - _MARGIN)

    drawn = []
    for style, (name, points) in zip(("", " second"), curves.items()):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        if len(points) == 1:
            line += f" {x(points[0][0]) + 2:.1f},{y(points[0][1]):.1f}"
        hints = [
            (x(step), y(value), f"step {step:,}: {name} {value:.5g}")
            for step, value in points[:: math.ceil(len(points) / _HINTS)]
        ]
        # A single metric is named by the title of its chart.
        name = f"{name.replace('_', ' ')} " if named else ""
        drawn.append(_Curve(style, f"{name}{points[-1][1]:.4g}", line, hints))
    rows = [(y(value), _tick(value)) for value in (low, (low + high) / 2, high)]
    ends = [(x(first), "start", f"{first:,}"), (x(last), "end", f"{last:,}")]
    return _Chart(title, rows, ends, drawn)


def _tick(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
