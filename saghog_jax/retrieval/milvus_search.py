"""Nearest pages in Milvus, a vector database, for galleries of more than one machine.

Needs the extra `milvus`: pymilvus, the client, and milvus-lite, which keeps the database in a local
file. Axis letters: q queries, p pages of the gallery, d width, k results.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import user_path
from saghog_jax.retrieval import int8_search
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import BOX, Embeddings

logger = logging.getLogger(__name__)

# The variable that holds user and password, or a token: configs are written into run folders.
TOKEN_VARIABLE = "MILVUS_TOKEN"
# Fields of every collection beside the columns of the manifest.
_ROW, _DESCRIPTOR, _PAGE_ID = "row_number", "descriptor", "page_id"
# Columns that say where the image is.
_NO_FIELDS = ("path", *BOX, _ROW, _DESCRIPTOR, _PAGE_ID)
# What Milvus allows: results per query, and bytes of a text.
_MOST_RESULTS, _MOST_BYTES = 16_384, 65_535
# Float32 values per message (8 MiB), and queries per message.
_MESSAGE_VALUES, _MESSAGE_QUERIES = 1 << 21, 256
_SECONDS_TO_CONNECT = 10


def search(
    queries: Float[np.ndarray, "q d"],
    descriptors: Float[np.ndarray, "p d"],
    gallery: Embeddings,
    k: int,
    uri: str,
    index: str,
    own: Int[np.ndarray, " q"],
    column: str = "",
    query_values: Shaped[np.ndarray, " q"] | None = None,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The k pages of largest cosine similarity, as Milvus finds them.

    A gallery that Milvus does not hold yet is inserted first, as a collection of its own.

    Args:
      queries, k, own: as for `search.search`.
      descriptors: of the gallery as they are compared, float32 or float16, may be memory-mapped.
      gallery: its page ids and the columns of its manifest become fields.
      uri: the address of a server (`http://host:19530`), or a local file `NAME.db`.
      index: Milvus's name of an index; empty: FLAT, which is exact, in a file, and AUTOINDEX, which
        the server chooses, on a server.
      column: pages with the same value as the query in this column are excluded by a filter.
      query_values: str [q], the values of the queries in this column, empty: no filter.

    Returns:
      rows int64 [q, k'] and similarities float32 [q, k'], best first, k' = min(k, p); -1 and -inf
      where no page is left.

    Raises:
      UserError: the extra is not installed, the server does not answer or reports an error, the
        column cannot be a field, or k is too large.
    """
    _check(k, column, gallery)
    pymilvus = _pymilvus(uri)
    index = index or ("AUTOINDEX" if "://" in uri else "FLAT")
    unit, k = l2_normalize(np.asarray(queries, np.float32)), min(k, len(gallery))
    rows = np.full((len(unit), k), -1)
    values = np.full((len(unit), k), -np.inf, np.float32)
    try:
        client = _connect(pymilvus, uri)
        try:
            name = _filled(pymilvus, client, descriptors, gallery, index)
            for part, condition in _messages(column, query_values, len(unit)):
                # The query itself may be among the results.
                lists = client.search(
                    name,
                    data=list(unit[part]),
                    limit=min(k + 1, len(gallery)),
                    filter=condition,
                    output_fields=[_ROW],
                    search_params={"metric_type": "COSINE"},
                )
                for i, hits in zip(part.tolist(), lists, strict=True):
                    _keep(hits, int(own[i]), rows[i], values[i])
        finally:
            client.close()
    except pymilvus.MilvusException as error:
        raise UserError(f"Milvus at {uri}: {error.message or error}") from None
    return rows, values


def _check(k: int, column: str, gallery: Embeddings) -> None:
    if k >= _MOST_RESULTS:
        raise UserError(f"config.top_k={k}: Milvus finds at most {_MOST_RESULTS - 1:,} pages")
    if column and column not in _columns(gallery):
        raise UserError(
            f"config.exclude_group={column!r} cannot be a field of Milvus, known: "
            f"{', '.join(_columns(gallery))}"
        )


def _keep(hits: Iterable, own: int, rows: np.ndarray, values: np.ndarray) -> None:
    """Writes the hits of a query, without the query itself, into its row of both arrays."""
    pairs = [(int(hit[_ROW]), float(hit["distance"])) for hit in hits]
    kept = [pair for pair in pairs if pair[0] != own][: len(rows)]
    rows[: len(kept)] = [row for row, _ in kept]
    values[: len(kept)] = [value for _, value in kept]


def _pymilvus(uri: str) -> ModuleType:
    try:
        import pymilvus

        if "://" not in uri:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"config.backend=milvus needs {error.name}: pip install 'saghog_jax[milvus]' (a local "
            "file needs milvus-lite, an address of a server in config.milvus.uri does not)"
        ) from None
    return pymilvus


def _connect(pymilvus: ModuleType, uri: str) -> object:
    place, options = uri, {}
    if "://" not in uri:
        path = user_path(uri)
        if path.suffix != ".db":
            raise UserError(
                f"config.milvus.uri={uri}: expected an address such as http://localhost:19530, or "
                "a local file that ends with .db"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        place = str(path)
        # milvus-lite ends connections that ask more often than each 5 minutes whether it is there.
        options = {"grpc.keepalive_time_ms": 600_000}
    token = os.environ.get(TOKEN_VARIABLE, "")
    try:
        return pymilvus.MilvusClient(
            place, token=token, timeout=_SECONDS_TO_CONNECT, grpc_options=options
        )
    except pymilvus.MilvusException as error:
        raise UserError(
            f"config.milvus.uri={uri} does not answer ({error.message}); user and password "
            f"are read from the variable {TOKEN_VARIABLE}"
        ) from None


def _columns(gallery: Embeddings) -> list[str]:
    """The columns of the manifest that become fields: their names are names in Milvus too."""
    names = (name for name in gallery.table if name not in _NO_FIELDS)
    return [name for name in names if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name)]


def _messages(
    column: str, values: Shaped[np.ndarray, " q"] | None, queries: int
) -> Iterator[tuple[Int[np.ndarray, " _"], str]]:
    """Rows of the queries that are searched in one message, and their filter."""
    groups = {"": np.arange(queries)}
    if column and values is not None:
        groups = {str(value): np.flatnonzero(values == value) for value in np.unique(values)}
    for value, rows in groups.items():
        condition = f"{column} != {json.dumps(value, ensure_ascii=False)}" if value else ""
        for start in range(0, len(rows), _MESSAGE_QUERIES):
            yield rows[start : start + _MESSAGE_QUERIES], condition


def _filled(
    pymilvus: ModuleType,
    client: object,
    descriptors: Float[np.ndarray, "p d"],
    gallery: Embeddings,
    index: str,
) -> str:
    """The name of the collection of a gallery, which is inserted if it is not there as a whole."""
    columns = [_PAGE_ID, *_columns(gallery)]
    texts = [gallery.page_ids, *(gallery.table[name] for name in columns[1:])]
    digest = hashlib.sha256(f"{int8_search.digest_of(descriptors)} {index} {columns}".encode())
    for column in texts:
        digest.update("\0".join(column.tolist()).encode())
    name = f"saghog_jax_{digest.hexdigest()[:24]}"
    if client.has_collection(name):
        client.load_collection(name)
        if _count(client, name) == len(gallery):
            return name
        client.drop_collection(name)
    logger.info(f"inserting {len(gallery):,} pages into Milvus, as collection {name}")
    client.create_collection(
        name,
        schema=_schema(pymilvus, client, columns, texts, descriptors.shape[1]),
        consistency_level="Strong",
    )
    # Waiting for the index of no pages needs a call that milvus-lite does not have.
    client.create_index(name, _index(client, index), sync=False)
    step = max(1, _MESSAGE_VALUES // descriptors.shape[1])
    for start in range(0, len(gallery), step):
        rows = range(start, min(start + step, len(gallery)))
        block = l2_normalize(np.asarray(descriptors[rows.start : rows.stop], np.float32))
        cells = zip(*(column[rows.start : rows.stop].tolist() for column in texts), strict=True)
        records = [
            {_ROW: row, _DESCRIPTOR: vector, **dict(zip(columns, words, strict=True))}
            for row, vector, words in zip(rows, block, cells, strict=True)
        ]
        client.insert(name, records)
    client.flush(name)
    client.load_collection(name)
    return name


def _count(client: object, name: str) -> int:
    return int(client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"])


def _schema(
    pymilvus: ModuleType,
    client: object,
    columns: Sequence[str],
    texts: Sequence[Shaped[np.ndarray, " p"]],
    width: int,
) -> object:
    kinds = pymilvus.DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(_ROW, kinds.INT64, is_primary=True)
    schema.add_field(_DESCRIPTOR, kinds.FLOAT_VECTOR, dim=width)
    for name, column in zip(columns, texts, strict=True):
        longest = max(len(text.encode()) for text in column.tolist())
        if longest > _MOST_BYTES:
            raise UserError(
                f"the column {name} has a text of {longest:,} bytes; Milvus takes {_MOST_BYTES:,}"
            )
        schema.add_field(name, kinds.VARCHAR, max_length=max(1, longest))
    return schema


def _index(client: object, kind: str) -> object:
    params = client.prepare_index_params()
    params.add_index(field_name=_DESCRIPTOR, index_type=kind, metric_type="COSINE", params={})
    return params
