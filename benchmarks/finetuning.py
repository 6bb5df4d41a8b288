"""The finetuning step at paper size, batch 256, against an eager PyTorch program of timm blocks.

    python -m benchmarks.finetuning time [--rounds 7] [--batch 256] [--folder runs/benchmarks]
    python -m benchmarks.finetuning memory [--batch 256] [--folder runs/benchmarks]

NetRVLAD with 100 clusters, multi-similarity loss with its miner, AdamW with clipping. Then head and
loss alone, from features to their gradients. Time in one process, alternately; peak memory of each
in a process of its own, beyond what is there before the first step (libraries, parameters,
optimiser). Needs the extra `bench`.
"""

import argparse
from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks import torch_model
from benchmarks.measure import Report, alternate, peak_memory, rates
from benchmarks.our_steps import (
    arguments,
    binary_of,
    compiled_step,
    finetuning,
    random_batch,
)
from saghog_jax.models.netrvlad import NetRVLAD, cosine_gram
from saghog_jax.restart import use_huge_pages
from saghog_jax.training.finetuning import metric_loss

CLUSTERS, WIDTH = 100, 512
HEAD_CALLS = 5


def our_step(batch_size: int, precision: str, remat: str) -> Callable[[], float]:
    """One update of the writer model."""
    return compiled_step(finetuning(precision, batch_size, remat=remat))


def torch_step(batch_size: int, autocast: bool = False) -> Callable[[], float]:
    """One update of the same model from what the loader ships."""
    torch.set_num_threads(torch_model.THREADS)
    model = torch_model.WriterModel(CLUSTERS)
    batch = random_batch(batch_size)
    binary = torch.from_numpy(binary_of(batch)).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(batch["label"])

    def loss_of() -> torch.Tensor:
        return torch_model.multi_similarity(model(binary * 2 - 1), labels)

    return torch_model.updates(model, loss_of, 1.0, autocast)


def features(batch_size: int) -> np.ndarray:
    """Random features [b, d] of the length that a LayerNorm gives them."""
    return np.random.default_rng(1).standard_normal((batch_size, WIDTH), np.float32)


def our_head(batch_size: int) -> Callable[[], object]:
    """Loss, and gradients of features and head."""
    loss = finetuning("float32", batch_size).config.loss
    labels, x = random_batch(batch_size)["label"], jax.numpy.asarray(features(batch_size))
    head = NetRVLAD(CLUSTERS)
    params = jax.jit(head.init)(jax.random.key(0), x)

    def loss_of(params: dict, x: jax.Array) -> jax.Array:
        gram = cosine_gram(head.apply(params, x), x, params["params"]["centroids"])
        return metric_loss(gram, labels, loss)

    gradients = jax.jit(jax.value_and_grad(loss_of, (0, 1))).lower(params, x).compile()
    return lambda: jax.block_until_ready(gradients(params, x))


def torch_head(batch_size: int) -> Callable[[], object]:
    """The same by PyTorch."""
    torch.set_num_threads(torch_model.THREADS)
    head = torch_model.NetRVLAD(CLUSTERS, WIDTH)
    labels = torch.from_numpy(random_batch(batch_size)["label"])
    x = torch.from_numpy(features(batch_size)).requires_grad_()

    def gradients() -> None:
        head.zero_grad(set_to_none=True)
        x.grad = None
        torch_model.multi_similarity(head(x), labels).backward()

    return gradients


def repeated(call: Callable[[], object]) -> Callable[[], None]:
    """`HEAD_CALLS` calls."""

    def calls() -> None:
        for _ in range(HEAD_CALLS):
            call()

    return calls


def measure_memory(report: Report, args: argparse.Namespace) -> None:
    """Peak memory of steps and of heads."""
    b = args.batch
    peaks = {
        "torch float32": peak_memory(torch_step, b),
        "torch bf16 autocast": peak_memory(torch_step, b, True),
        "ours float32": peak_memory(our_step, b, "float32", "none"),
        "ours float32, blocks computed again": peak_memory(our_step, b, "float32", "blocks"),
        "ours mixed": peak_memory(our_step, b, "mixed", "none"),
        "ours mixed, blocks computed again": peak_memory(our_step, b, "mixed", "blocks"),
    }
    for name, peak in peaks.items():
        report.add(f"memory of the step, {name}", peak.growth, "MiB")
        report.add(f"memory of the process, {name}", peak.peak, "MiB")
    again = peaks["ours float32, blocks computed again"].growth
    theirs, ours = peaks["torch float32"].growth, peaks["ours float32"].growth
    report.add(
        "memory of the step, computed again, to torch float32", again / theirs, "times", "<= 0.5"
    )
    report.add("memory of the step, computed again, to kept", again / ours, "times")
    ours, theirs = peak_memory(our_head, b), peak_memory(torch_head, b)
    report.add("memory of head and loss, ours", ours.growth, "MiB")
    report.add("memory of head and loss, torch", theirs.growth, "MiB")
    ratio = ours.growth / theirs.growth
    report.add("memory of head and loss, ours to torch", ratio, "times", "<= 0.2")


def measure_time(report: Report, args: argparse.Namespace) -> None:
    """Steps and heads, alternately."""
    times = alternate(
        args.rounds,
        warmup=0,
        settle=1,
        **{
            "ours float32": our_step(args.batch, "float32", "none"),
            "ours float32, blocks computed again": our_step(args.batch, "float32", "blocks"),
            "ours mixed": our_step(args.batch, "mixed", "none"),
            "torch float32": torch_step(args.batch),
            "torch bf16 autocast": torch_step(args.batch, True),
        },
    )
    for name, taken in times.items():
        report.add(f"step, {name}", rates(taken, args.batch), "patches/s")
        report.add(f"step, {name}, of processor time", taken.cpu, "s a step")
    exact, mixed = times["ours float32"], times["ours mixed"]
    theirs = times["torch float32"]
    report.ratio("step, ours to torch, float32", theirs, exact, ">= 1.3")
    report.ratio("step, ours to torch, float32, processor time", theirs, exact, by="cpu")
    report.ratio("step, ours mixed to float32", exact, mixed)
    report.ratio("step, ours mixed to torch autocast", times["torch bf16 autocast"], mixed)
    again = times["ours float32, blocks computed again"]
    report.ratio("time of a step, computed again to kept", again, exact)
    report.ratio("time of a step, computed again to kept, processor time", again, exact, by="cpu")
    heads = alternate(
        args.rounds, ours=repeated(our_head(args.batch)), torch=repeated(torch_head(args.batch))
    )
    for name, taken in heads.items():
        milliseconds = [1e3 * seconds / HEAD_CALLS for seconds in taken.wall]
        report.add(f"head and loss, {name}", milliseconds, "ms")
    report.ratio("head and loss, ours to torch", heads["torch"], heads["ours"], ">= 5")


def main() -> None:
    """Prints and writes the figures."""
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("part", choices=("time", "memory"))
    args = parser.parse_args()
    use_huge_pages()
    report = Report(f"finetuning-{args.part}")
    measure = {"time": measure_time, "memory": measure_memory}[args.part]
    measure(report, args)
    report.write(args.folder)


if __name__ == "__main__":
    main()
