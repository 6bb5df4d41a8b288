"""The public collections by name, and their form in `data.pages`: `tfds:NAME[/VARIANT]`.

    tfds:historical_wi                                  the default variant, binarised
    tfds:historical_wi/color,manual_dir=/data/hwi       its archives were unpacked in /data/hwi
    tfds:hisfrag20,check_counts=false                   an incomplete copy is accepted

The images are read in place, without copying. TFDS itself is not needed.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.datasets import (
    cbad2019,
    clamm16,
    clamm17,
    cvl,
    grk_papyri,
    hisfrag20,
    hisir19,
    historical_wi,
    icdar2013,
)
from saghog_jax.input_pipeline.datasets.collection import Collection, Row
from saghog_jax.input_pipeline.datasets.layout import read_rows
from saghog_jax.input_pipeline.errors import UserError, unknown_choice
from saghog_jax.input_pipeline.files import user_path

PREFIX = "tfds:"
COLLECTIONS: dict[str, Collection] = {
    module.COLLECTION.name: module.COLLECTION
    for module in (
        historical_wi,
        hisfrag20,
        grk_papyri,
        hisir19,
        icdar2013,
        cvl,
        clamm16,
        clamm17,
        cbad2019,
    )
}
_BOOLEANS = {"true": True, "false": False}


class Request(NamedTuple):
    """A variant of a collection, the folder of its files, and whether to check its counts."""

    collection: Collection
    variant: str
    manual_dir: Path
    check_counts: bool


def find(name: str) -> tuple[Collection, str]:
    """The collection and variant of `NAME` or `NAME/VARIANT`.

    Raises:
      UserError: the name is unknown; the message suggests the nearest known name.
    """
    base, slash, variant = name.partition("/")
    if base not in COLLECTIONS:
        raise UserError(unknown_choice("collection", base, COLLECTIONS, suggest=True))
    collection = COLLECTIONS[base]
    if not slash:
        return collection, next(iter(collection.variants))
    if variant not in collection.variants:
        known = [name for name in collection.variants if name]
        if not known:
            raise UserError(f"{base} has no variants, so {variant!r} is unknown; use {base}")
        raise UserError(unknown_choice(f"variant of {base}", variant, known, suggest=True))
    return collection, variant


def default_manual_dir() -> Path:
    """The folder where TFDS expects files that were downloaded by hand."""
    data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return user_path(data_dir) / "downloads" / "manual"


def parse(pages: str) -> Request:
    """Reads `tfds:NAME[/VARIANT][,manual_dir=FOLDER][,check_counts=false]`.

    Raises:
      UserError: the collection, variant or setting is unknown.
    """
    name, *settings = re.split(r",(?=\w+=)", pages.removeprefix(PREFIX))
    collection, variant = find(name)
    manual_dir, check_counts = default_manual_dir(), True
    for setting in settings:
        key, value = setting.split("=", 1)
        if key == "manual_dir":
            manual_dir = user_path(value)
        elif key == "check_counts" and value.lower() in _BOOLEANS:
            check_counts = _BOOLEANS[value.lower()]
        else:
            raise UserError(
                f"data.pages={pages}: {setting!r} is not one of manual_dir=FOLDER, "
                "check_counts=true and check_counts=false"
            )
    return Request(collection, variant, manual_dir, check_counts)


def list_pages(request: Request, split: str) -> tuple[Path, tuple[str, ...], list[Row]]:
    """Folder, further columns and pages of a request; pages of all splits if `split` is empty.

    Raises:
      UserError: see `layout.read_rows`.
    """
    collection, variant, manual_dir, check_counts = request
    rows = read_rows(collection, variant, manual_dir, split, check_counts)
    return manual_dir, collection.columns, rows
