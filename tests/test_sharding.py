"""The mesh and the layout of states on eight devices."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from saghog_jax import sharding


def mesh(data, fsdp):
    return sharding.make_mesh(ConfigDict({"data": data, "fsdp": fsdp}))


def test_mesh_takes_all_devices():
    assert dict(mesh(-1, 1).shape) == {"data": 8, "fsdp": 1}
    assert dict(mesh(-1, 4).shape) == {"data": 2, "fsdp": 4}
    assert dict(mesh(2, -1).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (-1, -1), (0, -1), (16, 1)])
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(UserError, match="there are 8 devices"):
        mesh(*sizes)


def test_largest_divisible_axis_is_sharded_and_vectors_are_not():
    state = {
        "wide": jax.ShapeDtypeStruct((12, 64), np.float32),
        "tall": jax.ShapeDtypeStruct((64, 6), np.float32),
        "odd": jax.ShapeDtypeStruct((5, 7), np.float32),
        "vector": jax.ShapeDtypeStruct((64,), np.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, mesh(-1, 4)))
    assert specs["wide"] == jax.P(None, "fsdp")
    assert specs["tall"] == jax.P("fsdp", None)
    assert specs["odd"] == specs["vector"] == jax.P()
    alone = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, mesh(-1, 1)))
    assert set(alone.values()) == {jax.P()}


def test_batches_lie_across_all_devices():
    batch = sharding.to_device({"patches": np.arange(32.0).reshape(16, 2)}, mesh(-1, 2))
    assert {s.data.shape for s in batch["patches"].addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(batch["patches"], np.arange(32.0).reshape(16, 2))


def test_batch_that_devices_do_not_divide_is_refused():
    assert sharding.local_batch_size(64) == 64
    with pytest.raises(UserError, match="global_batch_size=12 is not divisible by 8 devices"):
        sharding.local_batch_size(12)
