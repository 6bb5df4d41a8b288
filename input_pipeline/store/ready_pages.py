"""Ready-cut patches sorted into pages by what their file names tell."""

import dataclasses
from collections.abc import Iterable, Mapping

from saghog_jax.input_pipeline.errors import UserError


@dataclasses.dataclass
class ReadyPage:
    """The patches of a page: paths below the folder, and for each patch its cluster or -1."""

    split: str
    writer: str
    page: str
    names: list[str]
    labels: list[int]


def select_split(
    split: str, names: list[str], values: list[dict[str, str]]
) -> tuple[list[str], list[dict[str, str]]]:
    """The patches of a split; all patches if `split` is empty or no name has a split.

    Args:
      names: paths of the patches.
      values: what each name tells, see `image_names.search`.

    Raises:
      UserError: no patch has this split.
    """
    known = sorted({labels.get("split", "") for labels in values} - {""})
    if not split or not known:
        return names, values
    if split not in known:
        raise UserError(f"no patch has the split {split!r}, known: {', '.join(known)}")
    rows = [i for i, labels in enumerate(values) if labels.get("split", "") == split]
    return [names[i] for i in rows], [values[i] for i in rows]


def cluster_names(values: Iterable[Mapping[str, str]]) -> list[str]:
    """All clusters in the file names, numbers first and in numeric order."""
    return sorted({labels.get("cluster", "") for labels in values} - {""}, key=_by_number)


def group_by_page(
    names: Iterable[str], values: Iterable[Mapping[str, str]], clusters: list[str]
) -> list[ReadyPage]:
    """Pages, sorted by split, writer and page; the patches of a page in the order of `names`."""
    index = {cluster: i for i, cluster in enumerate(clusters)}
    pages: dict[tuple[str, str, str], ReadyPage] = {}
    for name, labels in zip(names, values, strict=True):
        key = (labels.get("split", ""), labels.get("writer", ""), labels["page"])
        page = pages.get(key)
        if page is None:
            page = pages[key] = ReadyPage(*key, [], [])
        page.names.append(name)
        page.labels.append(index.get(labels.get("cluster", ""), -1))
    return [pages[key] for key in sorted(pages, key=lambda key: [*map(_by_number, key)])]


def _by_number(text: str) -> tuple[bool, int, str]:
    """Sort key: 2 before 10, and numbers before other texts."""
    number = text.isdecimal()
    return not number, int(text) if number else 0, text
