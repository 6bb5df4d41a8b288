"""The pretraining step at paper size, batch 256, against an eager PyTorch program of timm blocks.

    python -m benchmarks.pretraining [--rounds 7] [--batch 256] [--folder runs/benchmarks]

Both sides take uint8 patches and bits of ink, make HOG targets, mask, predict, and update all
parameters by AdamW with clipping: float32, mixed precision (PyTorch: bf16 autocast). In the same
rounds, the matrix product (17 b x 512) by (512 x 2048) of both libraries. Needs the extra `bench`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_model
from benchmarks.flops import pretraining_flops
from benchmarks.measure import Report, alternate, rates
from benchmarks.our_steps import arguments, binary_of, compiled_step, pretraining, random_batch
from saghog_jax.restart import use_huge_pages

ROWS_A_PATCH, INNER, COLUMNS = 17, 512, 2048
PRODUCTS = 20


def torch_pretraining(batch_size: int, autocast: bool = False) -> Callable[[], float]:
    """One update of the masked autoencoder from what the loader ships."""
    model = torch_model.MaskedAutoencoder()
    batch = random_batch(batch_size)
    patches = torch.from_numpy(batch["patches"])
    binary = torch.from_numpy(binary_of(batch))

    def loss_of() -> torch.Tensor:
        images = patches.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            targets = torch_model.hog(binary)
        return model(images, targets)

    return torch_model.updates(model, loss_of, 0.02, autocast)


def products(rows: int) -> dict[str, Callable[[], object]]:
    """`PRODUCTS` matrix products of each library in float32 and with bfloat16 operands."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, INNER), np.float32)
    y = rng.standard_normal((INNER, COLUMNS), np.float32)
    sides = {}
    for name, jax_type, torch_type in (
        ("float32", jnp.float32, torch.float32),
        ("bfloat16", jnp.bfloat16, torch.bfloat16),
    ):
        a, b = jnp.asarray(x, jax_type), jnp.asarray(y, jax_type)
        product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
        c, d = torch.from_numpy(x).to(torch_type), torch.from_numpy(y).to(torch_type)

        def by_jax(product=product, a=a, b=b) -> None:
            for _ in range(PRODUCTS):
                product(a, b).block_until_ready()

        def by_torch(c=c, d=d) -> None:
            for _ in range(PRODUCTS):
                c @ d

        sides |= {f"jax product {name}": by_jax, f"torch product {name}": by_torch}
    return sides


def main() -> None:
    """Prints and writes the figures."""
    args = arguments(__doc__, rounds=7).parse_args()
    use_huge_pages()
    torch.set_num_threads(torch_model.THREADS)
    rows = ROWS_A_PATCH * args.batch
    times = alternate(
        args.rounds,
        warmup=0,
        settle=1,
        **{
            "ours float32": compiled_step(pretraining("float32", args.batch)),
            "ours mixed": compiled_step(pretraining("mixed", args.batch)),
            "torch float32": torch_pretraining(args.batch),
            "torch bf16 autocast": torch_pretraining(args.batch, autocast=True),
            **products(rows),
        },
    )
    report = Report("pretraining")
    product_flops = 2e-9 * rows * INNER * COLUMNS * PRODUCTS
    step_flops = 1e-9 * pretraining_flops(pretraining("float32", args.batch).config)
    for name, taken in times.items():
        if "product" in name:
            report.add(name, rates(taken, product_flops), "GFLOP/s")
        else:
            report.add(name, rates(taken, args.batch), "patches/s")
            report.add(f"{name}, of processor time", taken.cpu, "s a step")
    exact, mixed = times["ours float32"], times["ours mixed"]
    theirs, autocast = times["torch float32"], times["torch bf16 autocast"]
    report.ratio("ours to torch, float32", theirs, exact, ">= 1.4")
    report.add(
        "ours float32 to jax's product, on FLOPs of the plain model",
        [
            step_flops / step / (product_flops / product)
            for step, product in zip(exact.wall, times["jax product float32"].wall, strict=True)
        ],
        "times",
        ">= 0.85",
    )
    report.ratio("ours mixed to float32", exact, mixed, ">= 1.5")
    report.ratio("ours mixed to torch autocast", autocast, mixed)
    # The clock counts what else runs on the machine; processor time hardly.
    report.ratio("ours to torch, float32, processor time", theirs, exact, by="cpu")
    report.ratio("ours mixed to float32, processor time", exact, mixed, by="cpu")
    report.ratio("ours mixed to torch autocast, processor time", autocast, mixed, by="cpu")
    report.write(args.folder)


if __name__ == "__main__":
    main()
