"""Writes reports, reads their data, and clicks through them in a browser, for tests."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from planted import planted

from saghog_jax import retrieve
from saghog_jax.configs import retrieve as retrieve_config
from saghog_jax.reports.evidence import Evidence, PageEvidence

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
EVIL = '</script><script>document.title="hacked"</script><img src=x onerror="hacked">.png'


def data_of(path: Path) -> dict:
    """The JSON data in a report file, which its script shows."""
    text = path.read_text(encoding="utf-8")
    element = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(element.group(1))


def report(tmp_path, pages, name="e", images=True, **fields):
    planted(tmp_path / name, pages, images=images)
    config = retrieve_config.get_config()
    config.embeddings = str(tmp_path / name)
    config.bootstrap = 50
    for key, value in fields.items():
        setattr(config.report, key, value)
    retrieve.run(config, tmp_path / "out")
    return tmp_path / "out" / "report.html"


def evidence_of(e, row, other, pairs=((0, 1), (2, 0))):
    """Evidence of three patches a page of 60 x 40 pixels, the first of them against the match."""
    side = evidence_of_page()
    alike = np.array([0.9, 0.5], np.float32)[: len(pairs)]
    x = e.descriptors
    similarity = float(x[row] @ x[other])
    return Evidence(similarity, side, side, np.array(pairs).reshape(-1, 2), alike)


def evidence_of_page():
    place = np.array([[10, 10], [30, 20], [50, 30]])
    return PageEvidence(place, np.full(3, 8.0), np.array([-0.1, 0.2, 0.3], np.float32), 0.25)


# What the browser does: the report with a script behind it that clicks, types and looks.
LOOK = """
<script>
const log = {};
function press(key) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
}
function type(id, value) {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event(id === "order" ? "change" : "input"));
}
const sheets = () => [...document.querySelectorAll(".sheet")].map((s) => s.id);
%s
document.body.innerHTML = "";
const out = Object.assign(document.createElement("pre"), {textContent: JSON.stringify(log)});
document.body.append(out);
parent.postMessage(out.textContent, "*");
</script>
"""
# A window is at least 500 pixels wide, a frame in it as narrow as a phone.
FRAME = """
<!doctype html>
<script>
addEventListener("message", (event) => {
  const out = Object.assign(document.createElement("pre"), {textContent: event.data});
  document.body.replaceChildren(out);
});
</script>
<iframe src="%s" width="%d" height="%d" style="border: 0"></iframe>
"""


def click_through(path, script, frame=None):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    looked = path.with_name("looked_" + path.name)
    looked.write_text(path.read_text(encoding="utf-8") + LOOK % script, encoding="utf-8")
    if frame:
        inner, looked = looked, path.with_name("frame_" + path.name)
        looked.write_text(FRAME % (inner.name, *frame), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=3000"] if frame else []
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run(
        [*command, profile, looked.as_uri()], capture_output=True, text=True, timeout=240
    )
    output = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)
    assert output, done.stderr[-2000:]
    return json.loads(html.unescape(output.group(1)))
