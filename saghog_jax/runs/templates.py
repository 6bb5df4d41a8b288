"""HTML pages from the templates in the folders `assets`; all inserted text is escaped."""

import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"


def render(template: str, folder: Path = ASSETS, **values: object) -> str:
    """The HTML page of a template.

    Args:
      template: file name of the template.
      folder: folder of the template and its assets. Shared templates and styles lie in `ASSETS`.
      values: variables of the template. Every character with a meaning in HTML is escaped.
    """
    return _environment(folder).get_template(template).render(values)


@functools.cache
def _environment(folder: Path) -> Environment:
    loader = FileSystemLoader([folder, ASSETS])
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # The filter `tojson` writes `<` as \u003c, so that no text can end a script element.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.1f}"
    environment.filters["px"] = lambda coordinate: f"{coordinate:.1f}"
    # Styles and scripts are inserted as they are.
    environment.globals["asset"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment
