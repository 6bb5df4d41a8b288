"""TFDS builders of the public collections, on tiny fakes of their folders."""

import pickle
import warnings

import numpy as np
import pytest
from collection_fakes import fake, rows_of
from messages import message_of
from PIL import Image

from saghog_jax.input_pipeline.datasets import tfds_builder
from saghog_jax.input_pipeline.datasets.catalog import COLLECTIONS


@pytest.fixture(scope="module")
def tfds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets

    return tensorflow_datasets


def _prepare(tfds, name, root, **settings):
    builder = tfds_builder.make_builder(name, data_dir=root / "data", **settings)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=root / "manual")
    )
    return builder


@pytest.mark.parametrize(
    "name", ["historical_wi/color", "hisfrag20", "icdar2013", "clamm17", "cbad2019"]
)
def test_builders_serve_the_same_rows_as_the_manifest(tfds, tmp_path, name):
    fake(tmp_path / "manual", name)
    builder = _prepare(tfds, name, tmp_path, check_counts=False)
    rows = rows_of(tmp_path / "manual", name)
    assert set(builder.info.splits) == {row.split for row in rows}
    for split in builder.info.splits:
        source = builder.as_data_source(split)
        examples = {}
        for example in (source[i] for i in range(len(source))):
            image = example.pop("image")
            assert (image.shape, image.dtype) == ((6, 5, 3), np.uint8)
            path = tmp_path / "manual" / example["path"].decode()
            np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("RGB")))
            examples[example["path"].decode()] = {k: v.decode() for k, v in example.items()}
        assert examples == {
            row.path: {"path": row.path, "writer": row.writer, "page": row.page, **row.extra}
            for row in rows
            if row.split == split
        }


def test_a_builder_says_where_its_pages_come_from(tfds, tmp_path):
    fake(tmp_path / "manual", "grk_papyri")
    builder = _prepare(tfds, "grk_papyri", tmp_path, check_counts=False)
    collection = COLLECTIONS["grk_papyri"]
    assert builder.info.citation == collection.citation
    assert builder.info.homepage == collection.homepage
    assert collection.license in str(builder.info.redistribution_info)
    assert builder.info.file_format.value == "array_record"
    again = tfds.builder("grk_papyri", data_dir=tmp_path / "data")
    assert again.info.splits["test"].num_examples == 5
    source = pickle.loads(pickle.dumps(again.as_data_source("test")))
    assert sorted(e["page"] for e in source)[0] == b"1"


def test_builders_check_counts_and_say_what_to_download(tfds, tmp_path):
    (tmp_path / "manual").mkdir()
    message = message_of(_prepare, tfds, "grk_papyri", tmp_path)
    assert "does not exist or is empty" in message
    assert "d-scribes.philhist.unibas.ch" in message
    fake(tmp_path / "manual", "grk_papyri")
    message = message_of(_prepare, tfds, "grk_papyri", tmp_path)
    assert "expected 50 images, 10 writers, found 5 images, 3 writers" in message


def test_all_collections_are_known_to_tfds(tfds):
    tfds_builder.register()
    tfds_builder.register()
    assert set(COLLECTIONS) <= set(tfds.list_builders(with_community_datasets=False))
    assert tfds_builder.HistoricalWi is tfds_builder.builder_class("historical_wi")
    with pytest.raises(AttributeError, match="no attribute 'Historical'"):
        _ = tfds_builder.Historical
