"""TFDS builders of the public collections, for use as TFDS data sources.

    builder = make_builder("historical_wi/color", data_dir="/data/tfds")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir="/data/downloads")
    )
    pages = builder.as_data_source("train")

Examples hold `image` (uint8 [h, w, 3], RGB, stored as the bytes of the original file), `path`,
`writer`, `page` and the columns of the collection as text; unknown writers are empty. Records are
stored in ArrayRecord files; TensorFlow is not needed. The rest of this project reads the original
images instead, see `catalog`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saghog_jax.input_pipeline.datasets.catalog import COLLECTIONS, find
from saghog_jax.input_pipeline.datasets.collection import Collection, Row
from saghog_jax.input_pipeline.datasets.layout import read_rows
from saghog_jax.input_pipeline.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VERSION = "1.0.0"


def register() -> None:
    """Registers all collections with TFDS, which `tfds.builder("historical_wi/color")` requires."""
    for name in COLLECTIONS:
        builder_class(name)


def make_builder(
    name: str, data_dir: str | os.PathLike[str] | None = None, check_counts: bool = True
) -> tfds.core.GeneratorBasedBuilder:
    """The builder of a collection.

    Args:
      name: `NAME` or `NAME/VARIANT`, see `catalog`.
      data_dir: folder that TFDS writes to; None: TFDS's default.
      check_counts: see `layout.read_rows`.

    Raises:
      UserError: the name is unknown.
    """
    collection, variant = find(name)
    return builder_class(collection.name)(
        data_dir=data_dir, config=variant or None, check_counts=check_counts
    )


@functools.cache
def builder_class(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    """The TFDS builder class of the collection `name`; registers it with TFDS.

    The class is defined inside this function (hence its length), because its base class is imported
    here: the import takes a second and only builders need it.
    """
    import tensorflow_datasets as tfds

    collection = COLLECTIONS[name]

    class Pages(tfds.core.GeneratorBasedBuilder):
        name = collection.name
        # By default TFDS finds the path with a package (importlib_resources) that it does not
        # install.
        code_path = tfds.core.Path(__file__)
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [  # noqa: RUF012 - the name and form that TFDS looks for
            tfds.core.BuilderConfig(name=variant, description=variant)
            for variant in collection.variants
            if variant
        ]
        MANUAL_DOWNLOAD_INSTRUCTIONS = " ".join(
            f"{collection.full_name(variant)}: {collection.instructions(variant)}."
            for variant in collection.variants
        )

        def __init__(
            self, *, check_counts: bool = True, file_format: Any = "array_record", **settings: Any
        ) -> None:
            """Like every TFDS builder; check_counts as in `make_builder`."""
            self._check_counts = check_counts
            super().__init__(file_format=file_format, **settings)

        def _info(self) -> tfds.core.DatasetInfo:
            texts = ("path", "writer", "page", *collection.columns)
            features: dict[str, Any] = {text: tfds.features.Text() for text in texts}
            features["image"] = tfds.features.Image(shape=(None, None, 3))
            return tfds.core.DatasetInfo(
                builder=self,
                description=collection.description,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "writer"),
                homepage=collection.homepage,
                citation=collection.citation,
                license=collection.license,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
            variant = self.builder_config.name if self.builder_config else ""
            manual_dir = _manual_dir(dl_manager, collection, variant)
            rows = read_rows(collection, variant, manual_dir, check_counts=self._check_counts)
            splits: dict[str, list[Row]] = {}
            for row in rows:
                splits.setdefault(row.split, []).append(row)
            return {
                split: self._generate_examples(manual_dir, rows) for split, rows in splits.items()
            }

        def _generate_examples(
            self, manual_dir: Path, rows: list[Row]
        ) -> Iterator[tuple[str, dict[str, Any]]]:
            for row in rows:
                labels = {"path": row.path, "writer": row.writer, "page": row.page, **row.extra}
                yield row.path, {"image": str(manual_dir / row.path), **labels}

    # Pickle finds the class by this name, see __getattr__.
    Pages.__name__ = Pages.__qualname__ = _class_name(collection.name)
    return Pages


def _class_name(name: str) -> str:
    """HistoricalWi for historical_wi."""
    return "".join(part.capitalize() for part in name.split("_"))


def __getattr__(attribute: str) -> type[tfds.core.GeneratorBasedBuilder]:
    """The builder classes as attributes of this module, created on first access.

    So they can be imported, and a pickled builder can be loaded in another process.
    """
    for name in COLLECTIONS:
        if attribute == _class_name(name):
            return builder_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def _manual_dir(
    dl_manager: tfds.download.DownloadManager, collection: Collection, variant: str
) -> Path:
    try:
        return Path(dl_manager.manual_dir)
    # TFDS raises this exception if the folder is missing or empty.
    except AssertionError as error:
        message = " ".join(str(error).split()).split(" Create it")[0]
        raise UserError(
            f"{collection.full_name(variant)}: {message}; {collection.instructions(variant)}"
        ) from None
