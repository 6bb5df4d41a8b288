"""Opens the patch store of a training stage: cut from pages, or made of ready-cut patches."""

import logging
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.ready_patches import ensure_ready_store

logger = logging.getLogger(__name__)


def open_store(
    data: ConfigDict,
    store: ConfigDict,
    log: Callable[[str], None] = logger.info,
    regions: ConfigDict | None = None,
) -> Store:
    """Opens the store of these sections; builds missing shards first.

    Args:
      data: `data_config()` of configs/common.py. With `cluster_regex`, `data.pages` is a folder of
        ready-cut patches; `ready_patches.ready_labels` reads their clusters from the store.
      store: `store_config()` of configs/common.py; for ready-cut patches only `root`, `patch_size`
        and `workers` have an effect.
      log: called with one line at a time.
      regions: see `build.ensure_store`; ignored for ready-cut patches.

    Raises:
      UserError: see `build.ensure_store` and `ready_patches.ensure_ready_store`.
    """
    if not data.cluster_regex:
        return Store.open(ensure_store(data, store, log, regions=regions))
    path = ensure_ready_store(
        Path(data.pages),
        data.cluster_regex,
        data.writer_regex,
        data.page_regex,
        Path(store.root),
        split=data.split,
        patch_size=store.patch_size,
        workers=store.workers,
        log=log,
    )
    return Store.open(path)
