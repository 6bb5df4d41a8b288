"""report.html of a run: curves of its metrics, pictures of what it learned, its resolved config.

Opens from disk, needs no network and no script; made anew whenever it is written.
"""

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.runs.pictures import Picture

REPORT = "report.html"
NO_PICTURES = (
    "Pictures stand here when a run of one process has ended, or after: python -m saghog_jax.main "
    "--config=configs/show.py --config.checkpoint=THIS_FOLDER"
)
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 200, 60, 24  # Of a chart, in units of its picture.
_HOVER = 400  # Points of a curve that tell their values, at most.
# Charts in this order: title, and the metrics drawn in it. Metrics of no chart get one each.
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
_STYLE = """
body { max-width: 76rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
.charts figure { border-width: 1px; padding: 0.6rem; }
.charts figcaption { font-size: 1rem; padding: 0 0 0.3rem; }
.charts svg { width: 100%; height: auto; }
.charts text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.axis { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; stroke: var(--accent); }
.curve.second { stroke: var(--wrong); stroke-dasharray: 6 4; }
.key { color: var(--accent); } .key.second { color: var(--wrong); }
.hover { fill: transparent; }
.hover:hover { fill: var(--ink); }
.pictures img { max-width: 100%; height: auto; image-rendering: pixelated; background: #fff; }
.columns { display: grid; color: var(--soft); font-size: 0.85rem; text-align: center; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write(folder: Path, pictures: Sequence[Picture] = (), note: str = "") -> Path:
    """Writes FOLDER/report.html from its metrics.jsonl and config.json.

    Args:
      folder: a run folder.
      pictures: in their order.
      note: a sentence shown where pictures would stand.

    Returns:
      the path of the report.
    """
    config = json.loads((folder / "config.json").read_text())
    records = read_metrics(folder / "metrics.jsonl")
    title = f"{config['stage']}: {folder.parent.name}/{folder.name}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_summary(records, config))}</p>",
        '<section class="charts" aria-label="Curves">',
        *_charts(records),
        "</section>",
        *_pictures(pictures, note),
        "<h2>Config</h2>",
        "<dl>",
        *(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in _fields(config)),
        "</dl>",
    ]
    with atomic_write(folder / REPORT, "w") as file:
        file.write(_page(title, "\n".join(parts)))
    return folder / REPORT


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl; none where there is no file."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a torn line, as a kill leaves it
    return records


def _summary(records: list[dict[str, float]], config: dict) -> str:
    if not records:
        return f"No step of {config['total_steps']:,} has been logged yet."
    last = records[-1]["step"]
    patches = last * config["global_batch_size"]
    text = f"Step {last:,} of {config['total_steps']:,}; {patches:,} patches seen"
    losses = [record["loss"] for record in records if "loss" in record]
    return f"{text}; loss {losses[0]:.4g} at first, {losses[-1]:.4g} now." if losses else f"{text}."


def _charts(records: list[dict[str, float]]) -> Iterable[str]:
    found = dict.fromkeys(name for record in records for name in record if name != "step")
    known = {name for _, names in CHARTS for name in names} | _NO_CHART
    others = [(name.replace("_", " "), (name,)) for name in found if name not in known]
    for title, names in [*CHARTS, *others]:
        curves = {
            name: [(r["step"], r[name]) for r in records if name in r and math.isfinite(r[name])]
            for name in names
        }
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            yield _chart(title, curves, named=len(names) > 1)


def _chart(title: str, curves: Mapping[str, list[tuple[int, float]]], named: bool) -> str:
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    first, last = min(steps), max(steps)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9

    def x(step: float) -> float:
        return LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 8)

    def y(value: float) -> float:
        return 8 + (high - value) / (high - low) * (HEIGHT - BOTTOM - 8)

    marks = []
    for value in (low, (low + high) / 2, high):
        at = y(value)
        marks.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        marks.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        )
    for step, anchor in ((first, "start"), (last, "end")):
        marks.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,}</text>'
        )
    keys = []
    for kind, (name, points) in zip(("", " second"), curves.items()):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        if len(points) == 1:
            line += f" {x(points[0][0]) + 2:.1f},{y(points[0][1]):.1f}"
        marks.append(f'<polyline class="curve{kind}" points="{line}"/>')
        every = math.ceil(len(points) / _HOVER)
        marks += (
            f'<circle class="hover" cx="{x(step):.1f}" cy="{y(value):.1f}" r="5">'
            f"<title>step {step:,}: {html.escape(name)} {value:.5g}</title></circle>"
            for step, value in points[::every]
        )
        # The title of a chart of one metric is its name.
        label = f"{name.replace('_', ' ')} {points[-1][1]:.4g}" if named else f"{points[-1][1]:.4g}"
        keys.append(f'<span class="key{kind}">{html.escape(label)}</span>')
    return (
        f"<figure><figcaption>{html.escape(title)} · {', '.join(keys)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(marks)}</svg></figure>"
    )


def _tick(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def _pictures(pictures: Sequence[Picture], note: str) -> Iterable[str]:
    if note:
        yield f'<p class="legend">{html.escape(note)}</p>'
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        yield (
            f'<section class="pictures"><h2>{html.escape(picture.title)}</h2>'
            f"<p>{html.escape(picture.says)}</p>{_columns(picture)}"
            f'<img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}"></section>'
        )


def _columns(picture: Picture) -> str:
    if not picture.columns:
        return ""
    cells = "".join(f"<span>{html.escape(name)}</span>" for name in picture.columns)
    style = (
        f"max-width: {picture.width}px; grid-template-columns: repeat({len(picture.columns)}, 1fr)"
    )
    return f'<div class="columns" style="{style}">{cells}</div>'


def _fields(config: dict, prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in sorted(config.items()):
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value, ensure_ascii=False)


def _page(title: str, body: str) -> str:
    # The look of the retrieval reports.
    style = (resources.files("saghog_jax.runs") / "assets" / "report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{style}{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )
