"""The mesh and the layout of states on eight devices."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from saghog_jax.devices import sharding
from saghog_jax.input_pipeline.errors import UserError


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


def test_batches_are_split_across_all_devices():
    batch = sharding.to_device({"patches": np.arange(32.0).reshape(16, 2)}, mesh(-1, 2))
    assert {s.data.shape for s in batch["patches"].addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(batch["patches"], np.arange(32.0).reshape(16, 2))


def test_batch_that_devices_do_not_divide_is_refused():
    sharding.check_divisible("global_batch_size", 64, 8)
    with pytest.raises(UserError, match="global_batch_size=12 is not divisible by 8 devices"):
        sharding.check_divisible("global_batch_size", 12, 8)


def test_rules_decide_by_name_and_unsplittable_arrays_are_named():
    state = {
        "block": {"kernel": jax.ShapeDtypeStruct((8, 64), np.float32)},
        "cls_token": jax.ShapeDtypeStruct((1, 1, 64), np.float32),
        "odd": {"kernel": jax.ShapeDtypeStruct((5, 7), np.float32)},
        "bias": jax.ShapeDtypeStruct((7,), np.float32),
    }
    four = mesh(-1, 4)
    specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, four))
    assert specs["block"]["kernel"] == jax.P(None, "fsdp")
    assert specs["cls_token"] == jax.P()
    assert sharding.fallbacks(state, four) == ["odd/kernel (5, 7)"]
    assert sharding.fallbacks(state, mesh(-1, 1)) == []
    rules = ((r"^block/", "replicate"), (r"", "split"))
    specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(state, four, rules))
    assert specs["block"]["kernel"] == jax.P()
    assert specs["cls_token"] == jax.P(None, None, "fsdp")
    with pytest.raises(ValueError, match="no rule matches 'odd/kernel'"):
        sharding.state_shardings(state, four, ((r"^(b|c)", "split"),))


def test_parameters_are_initialised_in_parts():
    """The compiled initialisation never stores a whole parameter that is split."""
    eight = mesh(1, 8)

    def init():
        return {"kernel": jax.random.normal(jax.random.key(0), (1024, 512))}

    layout = sharding.state_shardings(jax.eval_shape(init), eight)
    compiled = jax.jit(init, out_shardings=layout).lower().compile()
    memory = compiled.memory_analysis()
    whole = 4 * 1024 * 512
    assert memory.output_size_in_bytes == whole // 8
    assert memory.temp_size_in_bytes < whole // 2


def test_host_arrays_get_the_shardings_of_device_arrays():
    four = mesh(-1, 4)
    place = sharding.NamedSharding(four, jax.P(None, "fsdp"))
    old = {"kernel": jax.device_put(np.zeros((6, 8), np.float32), place)}
    host = np.arange(48.0).reshape(6, 8)
    new = sharding.shard_like({"kernel": host}, old)["kernel"]
    assert new.sharding == place
    assert new.dtype == np.float32
    np.testing.assert_array_equal(new, host)
