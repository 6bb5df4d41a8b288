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
    """

    stage: str
    sections: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, object] = field(default_factory=dict)
    split: str = "train"
    variant: str = ""


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
