"""The class of each patch in finetuning: pseudo labels, pages, linked pages or writers."""

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels.page_links import ensure_links
from saghog_jax.input_pipeline.labels.pseudo_labels import ensure_labels
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.ready_patches import ready_labels

# The choices of `config.labels`, and what pictures call the classes.
CLASS_NAMES = {
    "cluster": "pseudo labels",
    "page": "pages",
    "linked": "linked pages",
    "writer": "writers",
}
LABELS = tuple(CLASS_NAMES)


def make_labels(config: ConfigDict, store: Store) -> np.ndarray:
    """The class of each patch of the store, int32 [n]; negative for patches without a class.

    Raises:
      UserError: `config.labels` is `writer`, and no page has a writer.
    """
    if config.labels == "writer":
        if not store.manifest.writers:
            raise UserError(
                f"config.labels is 'writer' but no page of {config.data.pages!r} has a writer; "
                "give --config.data.writer_regex or a manifest with a writer column, or train on "
                "--config.labels=cluster, which needs no writers"
            )
        return store.writer_ids
    if config.labels == "page":
        return store.index["page"]
    if config.labels == "linked":
        return ensure_links(store, config.links)
    if config.data.cluster_regex:
        return ready_labels(store)
    return ensure_labels(store, config.pseudo_labels)
