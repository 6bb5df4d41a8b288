"""A short pretraining in float32 and in mixed precision: do the loss curves lie on each other?

    python -m benchmarks.loss_curves [--steps 400] [--folder runs/benchmarks]

The default configuration on the built-in corpus, the same batches and masks in both runs. Writes
the figures, and the curves as docs/images/mixed-precision.svg.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import FOLDER, Report
from saghog_jax import pretrain
from saghog_jax.configs.pretrain import get_config

PICTURE = Path("docs/images/mixed-precision.svg")
PRECISIONS = ("float32", "mixed")
COLOURS = {"float32": "#1f77b4", "mixed": "#d62728"}
WIDTH, HEIGHT, MARGIN = 640, 320, 48


def losses(precision: str, steps: int, workdir: Path) -> list[float]:
    """The loss of every step of a run."""
    config = get_config()
    config.precision, config.total_steps = precision, steps
    config.log_every, config.checkpoint_every = 1, steps
    pretrain.run(config, workdir)
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def picture(curves: dict[str, Sequence[float]]) -> str:
    """The curves as SVG: losses (logarithmic) over steps, the second one dashed on the first."""
    top = max(max(curve) for curve in curves.values())
    low_end = min(min(curve) for curve in curves.values())
    steps = max(len(curve) for curve in curves.values())

    def point(step: int, loss: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / max(steps - 1, 1)
        share = math.log(loss / low_end) / math.log(top / low_end)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
        return f"{x:.1f},{y:.1f}"

    marks = []
    for i, (name, curve) in enumerate(curves.items()):
        line = " ".join(point(step, loss) for step, loss in enumerate(curve))
        style = f'fill="none" stroke="{COLOURS[name]}" stroke-width="{2 - i}"'
        dashes = ' stroke-dasharray="4 3"' if i else ""
        marks.append(f'<polyline points="{line}" {style}{dashes}/>')
        y = MARGIN + 18 * i
        marks.append(
            f'<line x1="{WIDTH - 190}" x2="{WIDTH - 160}" y1="{y}" y2="{y}" {style}{dashes}/>'
            f'<text x="{WIDTH - 152}" y="{y + 4}">{name}</text>'
        )
    left, right, low, high = MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN, MARGIN
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"
 font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
<path d="M{left},{high} V{low} H{right}" fill="none" stroke="#333"/>
<text x="{left - 8}" y="{high + 4}" text-anchor="end">{top:.3f}</text>
<text x="{left - 8}" y="{low + 4}" text-anchor="end">{low_end:.3f}</text>
<text x="{left}" y="{low + 18}">1</text>
<text x="{right}" y="{low + 18}" text-anchor="end">{steps}</text>
<text x="{(left + right) / 2}" y="{low + 32}" text-anchor="middle">step</text>
<text x="{left}" y="{high - 14}">loss of pretraining, on a logarithmic axis</text>
{chr(10).join(marks)}
</svg>
"""


def main() -> None:
    """Trains twice, prints and writes the figures and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: losses(name, args.steps, Path(folder) / name) for name in PRECISIONS}
    exact, mixed = (curves[name] for name in PRECISIONS)
    report = Report("loss-curves")
    tail = args.steps // 10
    for name, curve in curves.items():
        report.add(
            f"{name}, mean loss of the last {tail} steps", statistics.mean(curve[-tail:]), ""
        )
    gaps = [100 * abs(m / e - 1) for e, m in zip(exact, mixed, strict=True)]
    report.add("distance of the curves, step by step, of the float32 loss", gaps, "%", "< 1")
    report.write(args.folder)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(curves))
    print(f"written: {PICTURE}")


if __name__ == "__main__":
    main()
