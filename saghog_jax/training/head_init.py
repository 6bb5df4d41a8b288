"""First centroids of NetRVLAD: k-means centres of the encoder's descriptors of training patches."""

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from sklearn.cluster import MiniBatchKMeans

from saghog_jax.devices import distributed
from saghog_jax.devices.sharding import replicated
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.models import inputs
from saghog_jax.models.writer_model import WriterModel, token_ink

_BATCH = 1024


def feature_centres(
    config: ConfigDict, model: WriterModel, variables: dict, store: Store, rows: np.ndarray
) -> np.ndarray:
    """k-means centres [v, d] of descriptors of patches drawn evenly from the store.

    Args:
      config: of the finetuning.
      variables: of the model, its encoder as it is before the first update.
      rows: int [n], patches of the store to draw from.
    """
    # Of arrays on a mesh the result must be whole on every process.
    place = jax.tree.leaves(variables)[0].sharding
    whole = replicated(place.mesh) if isinstance(place, NamedSharding) else None

    @functools.partial(jax.jit, out_shardings=whole)
    def describe(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        images, binary = inputs.decode(batch)
        images = inputs.normalize(inputs.model_input(images, binary, config.input))
        x = model.apply(variables, images, method="encode")
        return x, token_ink(binary, model.encoder.token_size)

    drawn = rows[evenly(len(rows), config.netrvlad.init_samples)]
    descriptors = []
    for first in range(0, len(drawn), _BATCH):
        part = drawn[first : first + _BATCH]
        # The last batch is filled up so that only one shape is compiled.
        batch = store.gather(np.resize(part, _BATCH))
        x, ink = (np.asarray(a)[: len(part)] for a in describe(variables, batch))
        descriptors.append(x[ink >= config.min_token_ink] if x.ndim == 3 else x)
    features = np.concatenate(descriptors)
    features = features[evenly(len(features), config.netrvlad.init_samples)]
    kmeans = MiniBatchKMeans(config.netrvlad.num_clusters, random_state=config.seed, n_init=3)
    # All processes take the centres of one: theirs may differ in the last bit.
    return distributed.broadcast(kmeans.fit(features).cluster_centers_.astype(np.float32))
