"""How training scales, read from the compiled programs; writes docs/scaling.md.

    python -m benchmarks.scaling [--write]

Compiles the steps of paper size for 1 to 64 virtual CPU devices, sharded over `data` or `fsdp`, and
counts what the compiled programs exchange, against theory; FLOPs and bytes a patch; a roofline of
the step on an H100 and a TPU v5e; and the section of `benchmarks.costs`. Nothing is run. Takes
about five minutes.
"""

import argparse
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from benchmarks import costs, hlo
from benchmarks.flops import pretraining_flops
from benchmarks.our_steps import finetuning, pretraining, random_batch
from saghog_jax.devices import sharding
from saghog_jax.training.task import Task, init_state, make_step

DEVICES = 64
PAGE = Path("docs/scaling.md")
COUNTS = (1, 2, 4, 8, 16, 32, 64)
A_DEVICE = 256


class Chip(NamedTuple):
    """Data sheet numbers: bfloat16 FLOP/s, bytes/s of memory and of the links to its neighbours."""

    name: str
    flops: float
    memory: float
    links: float
    a_host: int


CHIPS = (
    Chip("H100 SXM", 989e12, 3.35e12, 450e9, 8),
    Chip("TPU v5e", 197e12, 819e9, 200e9, 8),
)
# Share of the data sheet's rate that a product, or a pass over memory, reaches at best in practice.
PRODUCT_SHARE, MEMORY_SHARE, LINK_SHARE = 0.7, 0.8, 0.7
# Whether passes over memory take time.
BOUNDS = {"as compiled": 1, "products alone": 0}
# Nothing is run: machine code need not be good.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PATCH_BYTES = 32 * 32 * 3 + 32 * 32 // 8
TEXT = """# Scaling

Written by `python -m benchmarks.scaling --write` from the compiled programs of the step at paper
size in mixed precision (jax {jax}, virtual CPU devices). Nothing here was run on accelerators;
assumptions are marked as such.

## FLOPs and bytes of a patch in pretraining

| what | a patch |
|---|---|
{a_patch}

The compiled step has fewer FLOPs than the plain model because it computes the last decoder block
only for removed tokens, which is exact. Bytes are those of the CPU program at batch {a_device}:
operands and results of every instruction, after fusion.

## Communication between devices

Pretraining, {a_device} patches on each device. The table gives the MiB that each of n devices sends
in a step, with ring collectives. Theory, in float32: over `data` the gradients are summed, which
takes 2 (n - 1) / n times the parameters. Over `fsdp` split parameters are gathered for the forward
and for the backward pass, and their gradients are summed and scattered: 3 (n - 1) / n times. A
compiler that sums whole gradients and keeps a slice of them needs 4 (n - 1) / n. A compiler that
keeps the gathered parameters for the backward pass needs one less. XLA for CPUs does both: it sums
whole gradients (2) and gathers parameters once (1), which is the same number of bytes. (Over `data`
the ratio is a little below 1: queries of the decoder are computed from a table of positions, and
the gradient of the resulting queries is smaller than that of their kernel.)

| axis | devices | collectives | MiB sent | theory | ratio | by kind, MiB |
|---|---|---|---|---|---|---|
{exchange}

The number of devices hardly changes how much one device sends. With a fixed batch on each device,
the time of a step stays the same as long as the backward pass hides the communication.

Finetuning compares all patches of the global batch, so features and assignments of all patches are
exchanged too, and their gradients. The minimum is 2 (n - 1) times the features and assignments of
one device, {rows_mib} MiB: they are gathered forward, and their gradients are summed and scattered
backward. Over `data`, {a_device} patches on each device:

| devices | MiB sent | of gradients (theory) | for the metric loss | minimum |
|---|---|---|---|---|
{metric}

This part grows with the number of devices, because the global batch grows. It is small on one host
and larger than the gradients on 64 devices; two thirds of it could be saved.

## What to expect of an accelerator

This is a roofline model. *As compiled*: each instruction takes the longer of two times, its
products at {product_share} of the data sheet's rate and its bytes at {memory_share} of the memory's
rate; instructions run one after the other. The two percentages are assumptions. It is also assumed
that fusions are those of the CPU program. That program writes the float32 results of products
before it works on them. Compilers for accelerators fuse these operations, so this bound is the
slower one. *Products alone*: only the time of the products counts, as if everything else were
hidden. This bound is the faster one. The real speed lies between; small batches leave units idle
and bring it nearer to the slower bound. Data sheets:

{chips}

Utilisation is the FLOPs of the plain model relative to the data sheet. `exchange` is the time in ms
to sum all gradients over `data` at {link_share} of the links within a host. The backward pass, two
thirds of the step, can hide it if it is shorter. The last two columns are the rates that the loader
of a host must deliver.

| chip | batch | bound | step, ms | patches/s | utilisation | exchange | a host: patches/s | GB/s |
|---|---|---|---|---|---|---|---|---|
{roofline}

One core reads the patch store at the rate that `python -m benchmarks.loader` prints. If a host is
slower than its accelerators need, they wait, and the log shows the fraction of time.
"""


def mesh_of(data: int, fsdp: int) -> Mesh:
    """A mesh of the first devices."""
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


@functools.cache
def one_device(batch_size: int) -> list[hlo.Cost]:
    """Costs of the pretraining step of one device."""
    return hlo.costs(compiled_text(pretraining("mixed", batch_size), mesh_of(1, 1)))


def compiled_text(task: Task, mesh: Mesh) -> str:
    """The optimised program of one step of a task on a mesh."""
    state = jax.eval_shape(lambda: init_state(task, 0))
    batch = random_batch(task.config.global_batch_size)
    if task.kind == "mae":
        del batch["label"]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    shardings = sharding.state_shardings(state, mesh)
    step = jax.jit(
        make_step(task, 0),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(state, abstract).compile(FAST).as_text()


def parameters_of(task: Task) -> dict:
    """Shapes of the parameters."""
    return jax.eval_shape(lambda: init_state(task, 0)).params


def theory(task: Task, mesh: Mesh) -> float:
    """Bytes each device sends a step, in float32, round rings.

    data: gradients are summed over all devices. fsdp: split parameters are gathered for the forward
    and for the backward pass, their gradients are summed and scattered; the others as in data.
    """
    params = parameters_of(task)
    shardings = sharding.state_shardings(params, mesh)
    n = mesh.size
    total = 0.0
    for leaf, placed in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        passes = 2 if placed.is_fully_replicated else 3
        total += passes * (n - 1) / n * 4 * leaf.size
    return total


def exchanged(task: Task, mesh: Mesh) -> list[hlo.Collective]:
    """The collectives of a step."""
    return hlo.collectives(compiled_text(task, mesh))


def mib(number: float) -> str:
    """Bytes as MiB."""
    return f"{number / 2**20:,.1f}"


def exchange_rows(counts: Sequence[int]) -> list[str]:
    """A row a mesh: bytes that a device sends, by kind, against theory."""
    rows = []
    for axis in sharding.AXES:
        for n in counts:
            mesh = mesh_of(n, 1) if axis == "data" else mesh_of(1, n)
            task = pretraining("mixed", A_DEVICE * n)
            found = exchanged(task, mesh)
            sent = {kind: sum(c.sent for c in found if c.kind == kind) for kind in hlo.KINDS}
            total, expected = sum(sent.values()), theory(task, mesh)
            ratio = f"{total / expected:.3f}" if expected else "-"
            kinds = ", ".join(f"{kind} {mib(value)}" for kind, value in sent.items() if value)
            cells = (axis, n, len(found), mib(total), mib(expected), ratio, kinds or "-")
            rows.append("| " + " | ".join(map(str, cells)) + " |")
            print(rows[-1], flush=True)
    return rows


def metric_bytes() -> int:
    """Bytes of what the metric loss needs of the patches of a device: features, assignments."""
    config = finetuning("mixed").config
    return 4 * A_DEVICE * (config.model.width + config.netrvlad.num_clusters)


def metric_rows(counts: Sequence[int]) -> list[str]:
    """What the metric loss of the global batch adds in finetuning."""
    rows = []
    for n in counts[1:]:
        mesh = mesh_of(n, 1)
        task = finetuning("mixed", A_DEVICE * n)
        total = sum(c.sent for c in exchanged(task, mesh))
        expected = theory(task, mesh)
        least = 2 * (n - 1) * metric_bytes()
        rows.append(
            f"| {n} | {mib(total)} | {mib(expected)} | {mib(total - expected)} | {mib(least)} |"
        )
        print(rows[-1], flush=True)
    return rows


def roofline_rows() -> list[str]:
    """Time, rate and utilisation of one device's step on each chip."""
    rows = []
    for batch in (256, 2048):
        task = pretraining("mixed", batch)
        costs = one_device(batch)
        plain = pretraining_flops(task.config)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(parameters_of(task)))
        for chip, (bound, passes) in itertools.product(CHIPS, BOUNDS.items()):
            seconds = sum(
                max(
                    cost.flops / (PRODUCT_SHARE * chip.flops),
                    passes * cost.moved / (MEMORY_SHARE * chip.memory),
                )
                for cost in costs
            )
            exchange = 2 * 4 * parameters / (LINK_SHARE * chip.links)
            rate = batch / seconds
            rows.append(
                f"| {chip.name} | {batch:,} | {bound} | {1e3 * seconds:.2f} | {rate:,.0f} | "
                f"{100 * plain / seconds / chip.flops:.0f} % | {1e3 * exchange:.2f} | "
                f"{rate * chip.a_host:,.0f} | {rate * chip.a_host * PATCH_BYTES / 1e9:.2f} |"
            )
            print(rows[-1], flush=True)
    return rows


def a_patch() -> list[str]:
    """FLOPs and bytes of one patch, by formula and in the compiled program."""
    task = pretraining("mixed", A_DEVICE)
    costs = one_device(A_DEVICE)
    flops, moved = sum(c.flops for c in costs), sum(c.moved for c in costs)
    plain = pretraining_flops(task.config)
    return [
        f"| the plain model, by formula | {plain / A_DEVICE / 1e9:.2f} GFLOP |",
        f"| the compiled step, products alone | {flops / A_DEVICE / 1e9:.2f} GFLOP |",
        f"| the compiled step, read and written | {moved / A_DEVICE / 2**20:.1f} MiB |",
        f"| shipped by the host (uint8 patch, 1 bit of ink a pixel) | {PATCH_BYTES:,} bytes |",
    ]


def page(counts: Sequence[int]) -> str:
    """The text of docs/scaling.md."""
    chips = "\n".join(
        f"* {c.name}: {c.flops / 1e12:.0f} TFLOP/s in bfloat16, {c.memory / 1e12:.2f} TB/s memory, "
        f"{c.links / 1e9:.0f} GB/s links each way, {c.a_host} chips a host"
        for c in CHIPS
    )
    text = TEXT.format(
        jax=jax.__version__,
        a_device=A_DEVICE,
        product_share=f"{PRODUCT_SHARE:.0%}",
        memory_share=f"{MEMORY_SHARE:.0%}",
        link_share=f"{LINK_SHARE:.0%}",
        chips=chips,
        rows_mib=mib(metric_bytes()),
        a_patch="\n".join(a_patch()),
        exchange="\n".join(exchange_rows(counts)),
        metric="\n".join(metric_rows(counts)),
        roofline="\n".join(roofline_rows()),
    )
    return f"{text}\n{costs.section()}"


def main() -> None:
    """Prints the tables; writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    parser.add_argument("--most", type=int, default=DEVICES, help="most devices")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.most)
    text = page([n for n in COUNTS if n <= args.most])
    if args.write:
        PAGE.write_text(text)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
