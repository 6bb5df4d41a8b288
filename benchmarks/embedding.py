"""From all patches of a page to its page descriptor, against an eager PyTorch program.

    python -m benchmarks.embedding [--rounds 5] [--patches 1000] [--batch 256]
        [--folder runs/benchmarks]

Paper size, NetRVLAD with 100 clusters. PyTorch forms the vector of every patch (51,200 numbers), as
published evaluations do; ours forms sums. Both take batches of `--batch` patches. Peak memory for
1,000 and 5,000 patches a page is that of a process of its own, beyond what is there before
(libraries, parameters, patches). Needs the extra `bench`.
"""

from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks import torch_model
from benchmarks.flops import encoding_flops
from benchmarks.measure import Report, alternate, peak_memory, rates
from benchmarks.our_steps import arguments, binary_of, finetuning, random_batch
from saghog_jax.configs.embed import get_config
from saghog_jax.embedding.describers import netrvlad_describer
from saghog_jax.embedding.pooler import PagePooler, Pooling
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.restart import use_huge_pages
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm

LARGE = 5000


def ours(patches: int, batch_size: int, precision: str) -> Callable[[], np.ndarray]:
    """The page descriptor of a page of so many patches."""
    task = finetuning(precision)
    variables = jax.jit(lambda: task.init(jax.random.key(0)))()
    config = get_config()
    describer = netrvlad_describer("benchmark", task.config, variables, "binary")
    pooling = Pooling("sum", 1.0, [None])
    pooler = PagePooler([describer], pooling, batch_size, config.pages_per_batch, config.mesh)
    batch = random_batch(patches)
    nothing = np.zeros(patches, np.int32)
    cut = Cut(batch["patches"], batch["ink"], nothing, nothing, None)
    # Compiles, with one patch.
    first = Cut(cut.patches[:1], cut.ink[:1], nothing[:1], nothing[:1], None)
    list(pooler.pages(iter([first])))

    def descriptor() -> np.ndarray:
        [[total]] = pooler.pages(iter([cut]))
        return l2_normalize(power_norm(total, 0.4))

    return descriptor


def by_torch(patches: int, batch_size: int, autocast: bool = False) -> Callable[[], object]:
    """The same by PyTorch."""
    torch.set_num_threads(torch_model.THREADS)
    model = torch_model.WriterModel().eval()
    binary = torch.from_numpy(binary_of(random_batch(patches))).expand(-1, 3, -1, -1)

    def descriptor() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch_model.page_descriptor(model, binary, batch_size)

    return descriptor


def main() -> None:
    """Prints and writes the figures."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--patches", type=int, default=1000)
    args = parser.parse_args()
    use_huge_pages()
    report = Report("embedding")
    growth = {
        (name, n): peak_memory(side, n, args.batch, *rest).growth
        for name, side, *rest in (("ours", ours, "float32"), ("torch", by_torch))
        for n in (args.patches, LARGE)
    }
    for (name, n), mib in growth.items():
        report.add(f"memory, {name}, {n:,} patches", mib, "MiB")
    small, large = growth["ours", args.patches], growth["ours", LARGE]
    report.add(
        f"memory, ours, {LARGE:,} patches to {args.patches:,}", large / small, "times", "<= 1.1"
    )
    ratio = large / growth["torch", LARGE]
    report.add(f"memory, ours to torch, {LARGE:,} patches", ratio, "times", "<= 0.25")
    times = alternate(
        args.rounds,
        warmup=0,
        settle=1,
        **{
            "ours float32": ours(args.patches, args.batch, "float32"),
            "ours mixed": ours(args.patches, args.batch, "mixed"),
            "torch float32": by_torch(args.patches, args.batch),
            "torch bf16 autocast": by_torch(args.patches, args.batch, True),
        },
    )
    flops = 1e-9 * encoding_flops(finetuning("float32").config.model)
    for name, taken in times.items():
        rate = report.add(name, rates(taken, args.patches), "patches/s")
        report.add(f"{name}, on FLOPs of the plain encoder", rate * flops, "GFLOP/s")
    exact, mixed = times["ours float32"], times["ours mixed"]
    report.ratio("ours to torch, float32", times["torch float32"], exact, ">= 1.3")
    report.ratio("ours mixed to float32", exact, mixed)
    report.ratio("ours mixed to torch autocast", times["torch bf16 autocast"], mixed)
    report.ratio("ours to torch, float32, processor time", times["torch float32"], exact, by="cpu")
    report.write(args.folder)


if __name__ == "__main__":
    main()
