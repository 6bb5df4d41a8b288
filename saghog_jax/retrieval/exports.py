"""Exports an embeddings folder to one file, npz or parquet, for other programs.

Axis letters: p pages, d width of a descriptor.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.embeddings import Embeddings

FORMATS = ("npz", "parquet")
# Float32 values in memory at a time: 64 MiB.
_BLOCK_VALUES = 1 << 24


def write(embeddings: Embeddings, file_format: str) -> Path:
    """Writes `embeddings.npz` or `embeddings.parquet` into the folder and returns its path.

    The npz file contains `embeddings` float32 [p, d], `page_ids` and every column of the manifest
    as strings [p] (`path`, `writer`, `page`...). The parquet file has the columns `page_id`, those
    of the manifest, and `embedding`, a list of d float32 per row.

    Raises:
      UserError: the format is unknown.
    """
    check_choice("export format", file_format, FORMATS)
    path = embeddings.folder / f"embeddings.{file_format}"
    with atomic_write(path, "wb") as file:
        if file_format == "npz":
            _write_npz(file, embeddings)
        else:
            _write_parquet(file, embeddings)
    return path


def _blocks(x: np.ndarray) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // x.shape[1])
    for start in range(0, len(x), step):
        yield slice(start, min(len(x), start + step))


def _write_npz(file: io.BufferedIOBase, embeddings: Embeddings) -> None:
    x = embeddings.descriptors
    arrays = {"page_ids": embeddings.page_ids, **embeddings.table}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": x.shape}
            np.lib.format.write_array_header_1_0(member, header)
            for rows in _blocks(x):
                member.write(np.ascontiguousarray(x[rows], np.float32).data)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_parquet(file: io.BufferedIOBase, embeddings: Embeddings) -> None:
    # Imported here because the import takes half a second and is rarely needed.
    import pyarrow
    from pyarrow import parquet

    x = embeddings.descriptors
    names = ["page_id", *embeddings.table]
    vector_type = pyarrow.list_(pyarrow.float32(), x.shape[1])
    schema = pyarrow.schema(
        [*((name, pyarrow.string()) for name in names), ("embedding", vector_type)]
    )
    with parquet.ParquetWriter(file, schema) as writer:
        for rows in _blocks(x):
            table = embeddings.table.values()
            texts = [embeddings.page_ids[rows], *(column[rows] for column in table)]
            flat = pyarrow.array(np.ascontiguousarray(x[rows], np.float32).reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, x.shape[1])
            arrays = [pyarrow.array(text.tolist(), pyarrow.string()) for text in texts]
            writer.write_table(pyarrow.Table.from_arrays([*arrays, vectors], schema=schema))
