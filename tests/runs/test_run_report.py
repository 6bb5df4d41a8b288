"""report.html of a run: what it says, that it opens alone, and that nothing in it is run."""

import json
import re
import subprocess
import xml.dom.minidom

import numpy as np
import pytest
from report_helpers import CHROMIUM

from saghog_jax.runs import pictures, report


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run <b>&"
    folder.mkdir()
    config = {"stage": "pretrain", "total_steps": 400, "global_batch_size": 64,
              "data": {"pages": "<script>alert(1)</script>"}, "seed": 0}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(10, 310, 10):
        lines.append({"step": step, "loss": 1 / step, "learning_rate": 1e-3, "own_figure": step})
        if step % 100 == 0:
            lines.append(
                {"step": step, "validation_loss": 2 / step, "validation_map": 0.3, "best_step": 100}
            )
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 310, "lo'
    (folder / "metrics.jsonl").write_text(text)
    return folder


def charts(text):
    return re.findall(r"<figure>.*?</figure>", text, re.S)


def test_curves_and_config(folder):
    text = report.write(folder).read_text()
    assert "Step 300 of 400; 19,200 patches seen; loss 0.1 at first, 0.003333 now." in text
    titles = [re.search(r"<figcaption>(.*?) ·", chart).group(1) for chart in charts(text)]
    assert titles == ["loss", "retrieval of held-out pages", "learning rate", "own figure"]
    loss = charts(text)[0]
    assert loss.count("<polyline") == 2
    assert "validation loss 0.006667" in loss
    # A chart of one metric says its name once.
    assert '<figcaption>own figure · <span class="key">300</span>' in charts(text)[3]
    assert "<title>step 10: loss 0.1</title>" in loss
    for chart in charts(text):
        xml.dom.minidom.parseString(re.search(r"<svg.*</svg>", chart, re.S).group(0))
    for key, value in (("total_steps", "400"), ("seed", "0")):
        assert f"<dt>{key}</dt><dd>{value}</dd>" in text


def test_points_lie_where_their_numbers_say(folder):
    loss = charts(report.write(folder).read_text())[0]
    line = re.search(r'class="curve" points="([^"]+)"', loss).group(1)
    points = np.array([[float(n) for n in pair.split(",")] for pair in line.split()])
    steps, values = np.arange(10, 310, 10), 1 / np.arange(10, 310, 10)
    for axis, numbers in ((0, steps), (1, -values)):
        # Evenly scaled, and downwards for the values.
        scaled = (numbers - numbers.min()) / np.ptp(numbers)
        drawn = (points[:, axis] - points[:, axis].min()) / np.ptp(points[:, axis])
        np.testing.assert_allclose(drawn, scaled, atol=2e-3)


def test_names_are_shown_never_run(folder):
    text = report.write(folder).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "run &lt;b&gt;&amp;" in text
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_pictures_and_notes(folder):
    picture = pictures.classes(np.zeros((1, 2, 32, 32, 3)), ["<7>"], "clusters")
    text = report.write(folder, [picture._replace(columns=("a", "b"))], "a <note>").read_text()
    assert "data:image/png;base64,iVBOR" in text
    assert "&lt;7&gt;" in text
    assert "<span>a</span><span>b</span>" in text
    assert "a &lt;note&gt;" in text


def test_a_run_without_a_logged_step(folder):
    (folder / "metrics.jsonl").unlink()
    assert "No step of 400 has been logged yet." in report.write(folder).read_text()


def test_numbers_that_are_none_and_single_points(folder):
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 0.5, "grad_norm": NaN}\n')
    text = report.write(folder).read_text()
    assert len(charts(text)) == 1
    assert "nan" not in charts(text)[0].lower()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_within_its_window(folder, width, tmp_path):
    path = report.write(folder)
    probe = tmp_path / "probe.html"
    # Inside a frame the window may be as narrow as a phone's.
    probe.write_text(
        f'<iframe src="{path.as_uri()}" style="width:{width}px;height:800px"></iframe>'
        "<script>onload = () => { const page = document.querySelector('iframe').contentDocument;"
        "const wide = page.documentElement.scrollWidth;"
        "document.title = `${wide} ${page.querySelectorAll('polyline').length}`; }</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    wide, curves = re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups()
    assert int(wide) <= width
    assert curves == "5"
