"""The words of the reports: one table, `assets/words.json`, for templates, scripts and Python.

The table has one object for each language, with a text for each key. A text may have places for
values, such as `{n} pages`. A key with `.one` is the text for the value n = 1 of the key without.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from saghog_jax.input_pipeline.errors import check_choice

LANGUAGE = "en"
_TABLE = Path(__file__).parent / "assets" / "words.json"


def words_of(language: str) -> dict[str, str]:
    """The texts of a language by key.

    Raises:
      UserError: the table has no such language.
    """
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    check_choice("language of the report", language, tuple(table))
    return table[language]


def speaker(words: Mapping[str, str]) -> Callable[..., str]:
    """A function that returns the text of a key with its values, as `say` of the scripts does."""

    def say(key: str, **values: object) -> str:
        text = words.get(f"{key}.one") if values.get("n") == 1 else None
        return (words[key] if text is None else text).format_map(values)

    return say
