"""HTML templates: inserted text is escaped, and a missing variable is an error."""

import json
import re

import jinja2
import pytest

from saghog_jax.runs.templates import render

EVIL = "</script><script>'&\"ä"


def test_text_and_json_are_escaped_and_assets_are_not(tmp_path):
    (tmp_path / "a.js").write_text("if (1 < 2) run('{{ text }}');")
    (tmp_path / "page.html").write_text(
        '<p title="{{ text }}">{{ text }}</p><script id="data">{{ data|tojson }}</script>'
        '<script>{{ asset("a.js") }}</script>{{ 0.123|percent }} {{ 1.25|px }}'
    )
    page = render("page.html", tmp_path, text=EVIL, data={"z": EVIL, "a": 1})
    assert page.count("<script") == 2
    escaped = "&lt;/script&gt;&lt;script&gt;&#39;&amp;&#34;ä"
    assert f'<p title="{escaped}">{escaped}</p>' in page
    data = re.search(r'id="data">(.*?)</script>', page).group(1)
    assert "\\u003c" in data
    assert "ä" in data
    # In the order of the data.
    assert list(json.loads(data).items()) == [("z", EVIL), ("a", 1)]
    assert "if (1 < 2) run('{{ text }}');" in page
    assert page.endswith("12.3 1.2")


def test_a_missing_variable_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'summary' is undefined"):
        render("run.html", title="a run")
