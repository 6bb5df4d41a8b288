"""The result of a stage: what it wrote and counted, skipped pages, and the next stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NextStage:
    """The stage that usually follows, on the same pages.

    stage: its name.
    sections: sections of this stage's config that the next one must share, such as `data`.
    fields: further fields of its config, by their full name.
    split: default of the next stage's `data.split`.
    variant: of its config; empty takes the variant of this stage, if both have it.
    workdir: the folder that it writes to; None: beside the folder of this stage.
    remark: what must be done before, in a few words.
    """

    stage: str
    sections: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)
    split: str = "train"
    variant: str = ""
    workdir: Path | None = None
    remark: str = ""


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    workdir: the folder it wrote to.
    paths: files and folders it wrote, by what they are.
    counts: what it counted, such as `pages` and `patches`.
    skipped: (page_id, reason) of the pages that could not be used.
    following: the stages that usually come next.
    """

    workdir: Path
    paths: Mapping[str, Path] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    following: tuple[NextStage, ...] = ()


def folder_for_pages(workdir: Path, stage: str, pages: str) -> Path | None:
    """The folder that a next stage writes to, for a stage that has no run folder of its own.

    Args:
      workdir: of this stage.
      stage: the next one.
      pages: `config.data.pages`.

    Returns:
      runs/NAME/STAGE, NAME after the folder or file of the pages, so that work on other pages stays
      apart; None, beside `workdir`, where the user has chosen another folder than the default one,
      and where the pages have no name on disk.
    """
    source = Path(pages)
    name = source.parent.name if source.stem == "manifest" else source.stem
    runs = Path("runs").resolve()
    if workdir.parent != runs or not name or not source.exists():
        return None
    return runs / name / stage
