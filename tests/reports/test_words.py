"""The table of the words of the reports: every text is there, and every text is used."""

import re

import pytest
from messages import message_of

from saghog_jax.reports import sheets, words

CODE = [
    path
    for folder in ("", "assets")
    for path in sorted((words._TABLE.parents[1] / folder).iterdir())
    if path.suffix in (".py", ".js", ".html")
]
TEXTS = words.words_of("en")
# Keys that end with a value: the mark of a match, a decision, a pane, a column, a label.
BEGINNINGS = (
    *("mark.", "decide.", "pane.", "figures.", "unknown.", "labels.", "hardest."),
    *("summary.known.", "summary.queries.", "summary.no_", "load."),
)


def used():
    for path in [*CODE, words._TABLE.parents[2] / "search.py"]:
        text = path.read_text(encoding="utf-8")
        calls = r"\b(?:say|_SAY|LANGUAGE\)\))\((?:[\w!. ()]+\? )?f?[\"']([\w.]+)"
        yield from re.findall(calls, text)
        yield from re.findall(r"[\"']([a-z]+(?:\.[a-z_]+)+)[\"']", text)


def test_every_key_that_is_used_has_a_text():
    keys = {key for key in used() if key not in BEGINNINGS}
    asked = {key for key in keys if key.split(".")[0] in {name.split(".")[0] for name in TEXTS}}
    assert len(asked) > 60
    files = {key for key in asked if key.endswith((".html", ".css", ".js", ".csv", ".py"))}
    assert asked - files - set(TEXTS) == set()


def test_every_text_is_used():
    keys = set(used())
    unused = {
        key
        for key in TEXTS
        if key.removesuffix(".one") not in keys and not key.startswith(BEGINNINGS)
    }
    assert unused == set()


def test_singular_and_places():
    say = words.speaker(TEXTS)
    assert say("title.collection", name="a", n=1, date="d") == "a: 1 page, d"
    assert say("title.collection", name="a", n=2, date="d") == "a: 2 pages, d"
    with pytest.raises(KeyError):
        say("no such text")


def test_an_unknown_language_is_refused():
    assert "language of the report" in message_of(words.words_of, "xx")


@pytest.mark.parametrize("language", ["en"])
def test_a_singular_belongs_to_a_plural(language):
    texts = words.words_of(language)
    assert set(texts) == set(TEXTS)
    assert {key.removesuffix(".one") for key in texts if key.endswith(".one")} <= set(texts)


def test_the_words_of_a_report_are_those_of_the_table(monkeypatch, tmp_path):
    """A table for another language is all that a report in this language needs."""
    from planted import pages_of
    from report_helpers import data_of, report

    other = {key: text.upper().replace("{N}", "{n}") for key, text in TEXTS.items()}
    other = {key: re.sub(r"\{\w+\}", lambda m: m[0].lower(), text) for key, text in other.items()}
    monkeypatch.setattr(sheets, "words_of", lambda language: other)
    path = report(tmp_path, pages_of(2, 2), images=False)
    assert data_of(path)["words"] == other
    assert "RESULT SHEETS" in path.read_text()
