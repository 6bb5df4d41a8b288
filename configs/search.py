"""Compares new pages (queries) with embedded pages (the gallery): who wrote like this?

    python -m saghog_jax.main --config=configs/search.py

Searches runs/embed for every page of runs/embed (without the page itself) and writes runs/search:
matches.csv, search.json, report.html. Takes seconds for thousands of pages, on one device. Embed
your own pages with the same checkpoint, then give both folders:

    python -m saghog_jax.main --config=configs/embed.py --workdir=runs/mine/embed \
        --config.data.pages=FOLDER_OR_MANIFEST --config.data.split=
    python -m saghog_jax.main --config=configs/search.py --workdir=runs/mine/search \
        --config.queries=runs/mine/embed
"""

from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.configs.retrieve import report_config


def get_config(arg: str | None = None) -> ConfigDict:
    common.parse_arg(arg, ("default",))
    config = ConfigDict()
    config.stage = "search"
    # Embeddings folder of the queries.
    config.queries = "runs/embed"
    # Embeddings folder of the gallery, by the same checkpoint.
    config.gallery = "runs/embed"
    # Embeddings folder with known writers, by the same checkpoint: its pairs of pages calibrate
    # distances, as the fraction of pairs by one writer. `{gallery}`: the field above. Empty: no
    # calibration.
    config.calibrate = "{gallery}"
    # Column of the manifests (such as `sheet` or `source`): pages with the same value as the query
    # are left out of the gallery and of the calibration. Empty: only the query itself is left out.
    config.exclude_group = ""
    # A whitening.npz of `retrieve`, applied to all embeddings; empty: none.
    config.whitening = ""
    # Compares embeddings in spite of different settings (power, pooling, scales, binarisation,
    # regions) or weights, with a warning instead of an error.
    config.force = False
    # Matches listed for each query.
    config.top_k = 10
    # `exact`: every query is compared with every page, in chunks on the device. `int8`: a first
    # pass over 8-bit codes, then the best pages are compared exactly; for more than some hundred
    # thousand pages (`embed` writes the codes of 5,000 pages and more). `faiss`: approximate search
    # in an index (extra `faiss`), for more than a few million pages. `milvus`: the descriptors are
    # kept and searched in the vector database Milvus (extra `milvus`), on one machine or a cluster.
    config.backend = "exact"
    config.faiss = ConfigDict(
        {
            # Cells of the index (0: 4 times the square root of the number of pages), and the number
            # of cells that are searched for a query.
            "lists": 0,
            "probes": 32,
            # File of the index, reused by the next search; empty: faiss.index in the workdir.
            "index": "",
        }
    )
    # For `milvus`.
    config.milvus = ConfigDict(
        {
            # Address of a Milvus server (http://localhost:19530), or a local file NAME.db; empty:
            # milvus.db in the workdir. User and password (user:password), or a token, come from the
            # environment variable MILVUS_TOKEN.
            "uri": "",
            # Index of the descriptors, by Milvus's name (FLAT, IVF_SQ8, HNSW, ...); empty: FLAT,
            # which is exact, in a local file, and AUTOINDEX, which the server chooses, on a server.
            "index": "",
        }
    )
    # Also write annotations.json: the matches as a IIIF annotation page (W3C web annotations).
    config.annotations = False
    # A decisions.csv exported by the report; its decisions are added to annotations.json.
    config.decisions = ""
    config.report = report_config()
    return config
