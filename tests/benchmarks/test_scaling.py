"""What benchmarks/scaling.py reads from compiled programs, against theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import hlo, scaling
from benchmarks.flops import pretraining_flops
from benchmarks.our_steps import pretraining
from saghog_jax.training.task import init_state

TINY = {
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "model.decoder_width": 32,
    "model.decoder_heads": 2,
}


def program(call, shapes, mesh, inward, outward):
    placed = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in inward]
    out = NamedSharding(mesh, PartitionSpec(*outward))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(call, in_shardings=placed, out_shardings=out).lower(*arguments).compile()


def test_the_sum_over_devices_is_an_all_reduce_of_the_result():
    text = program(
        lambda x, y: x.T @ y,
        [(64, 8), (64, 16)],
        scaling.mesh_of(4, 1),
        [("data",), ("data",)],
        (),
    ).as_text()
    [found] = hlo.collectives(text)
    assert found == ("all-reduce", 8 * 16 * 4, 4)
    assert found.sent == 2 * 3 / 4 * 8 * 16 * 4


def test_a_split_array_that_is_wanted_whole_is_gathered():
    mesh = scaling.mesh_of(1, 2)
    text = program(lambda x: x * 2, [(6, 8)], mesh, [("fsdp",)], ()).as_text()
    [found] = hlo.collectives(text)
    assert found == ("all-gather", 6 * 8 * 4, 2)
    assert found.sent == 6 * 8 * 4 / 2


@pytest.mark.parametrize(("kind", "sent"), [("reduce-scatter", 3 * 256), ("all-gather", 3 * 64)])
def test_forms_that_cpu_programs_do_not_have(kind, sent):
    text = f"""
ENTRY %main (a: f32[64]) -> f32[64] {{
  %a = f32[64]{{0}} parameter(0)
  %pair = (f32[16]{{0}}, f32[64]{{0}}) {kind}-start(%a), replica_groups=[2,4]<=[8], dimensions={{0}}
  ROOT %r = f32[64]{{0}} {kind}-done(%pair)
}}"""
    if kind == "reduce-scatter":
        text = text.replace("-start", "").replace("(f32[16]{0}, f32[64]{0})", "f32[64]{0}")
    [found] = hlo.collectives(text)
    assert (found.kind, found.ways, found.sent) == (kind, 4, sent)


@pytest.mark.parametrize("devices", [2, 4])
def test_data_parallel_training_sums_the_gradients_and_no_more(devices):
    task = pretraining("float32", 8, **TINY)
    mesh = scaling.mesh_of(devices, 1)
    found = scaling.exchanged(task, mesh)
    assert {c.kind for c in found} == {"all-reduce"}
    # Queries of the decoder's one block are made of a table, one row a position, the same on all
    # devices: gradients of the rows (of queries, keys and values) are summed, not of their kernel.
    width, tokens = 32, 64
    instead = 4 * (tokens * 3 * width - width * (width + 1)) * 2 * (devices - 1) / devices
    expected = scaling.theory(task, mesh) + instead
    # Beside gradients there are a few scalars, such as the loss.
    assert expected <= sum(c.sent for c in found) < expected + 64


def test_split_parameters_are_gathered_and_their_gradients_scattered():
    task, mesh = pretraining("float32", 8, **TINY), scaling.mesh_of(1, 2)
    sent = sum(c.sent for c in scaling.exchanged(task, mesh))
    params = jax.eval_shape(lambda: init_state(task, 0)).params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert scaling.theory(task, mesh) <= sent * 1.001
    # At most: gathered twice, whole gradients summed.
    assert sent <= 4 / 2 * 4 * size * 1.01


def test_products_of_the_compiled_step_are_those_of_the_model():
    task = pretraining("float32", 8, **TINY)
    flops = sum(c.flops for c in hlo.costs(scaling.compiled_text(task, scaling.mesh_of(1, 1))))
    # The step leaves out of the decoder what kept tokens do not need.
    assert 0.7 < flops / pretraining_flops(task.config) < 1.05


def test_costs_of_a_product():
    compiled = jax.jit(jnp.matmul).lower(np.ones((4, 6), np.float32), np.ones((6, 5), np.float32))
    found = hlo.costs(compiled.compile().as_text())
    assert sum(c.flops for c in found) == 2 * 4 * 5 * 6
    assert sum(c.moved for c in found) >= 4 * (4 * 6 + 6 * 5 + 4 * 5)
