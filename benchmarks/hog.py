"""HOG targets on the device, against their PyTorch form, and as a share of the pretraining step.

    python -m benchmarks.hog [--rounds 9] [--batch 256] [--folder runs/benchmarks]

The PyTorch form is that of MaskFeat: Sobel by convolution, arc tangent, bins by scatter, cells by
pooling. The step is the whole pretraining step at paper size. Needs the extra `bench`.
"""

from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks import torch_model
from benchmarks.measure import Report, alternate
from benchmarks.our_steps import arguments, binary_of, compiled_step, pretraining, random_batch
from saghog_jax.models.hog import hog
from saghog_jax.restart import use_huge_pages

CALLS = 30


def main() -> None:
    """Prints and writes the figures."""
    args = arguments(__doc__, rounds=9).parse_args()
    use_huge_pages()
    torch.set_num_threads(torch_model.THREADS)
    binary = binary_of(random_batch(args.batch))
    images, theirs = jax.numpy.asarray(binary.transpose(0, 2, 3, 1)), torch.from_numpy(binary)
    compiled = jax.jit(hog).lower(images).compile()
    # The same numbers, but where the horizontal gradient is 0, whose bin the two choose apart.
    same = np.isclose(compiled(images), torch_model.hog(theirs).numpy(), atol=1e-5).mean()

    def calls(call: Callable[[], object]) -> Callable[[], None]:
        return lambda: [jax.block_until_ready(call()) for _ in range(CALLS)]

    times = alternate(
        args.rounds,
        warmup=0,
        settle=1,
        **{
            "ours": calls(lambda: compiled(images)),
            "torch": calls(lambda: torch_model.hog(theirs)),
            "step float32": compiled_step(pretraining("float32", args.batch)),
            "step mixed": compiled_step(pretraining("mixed", args.batch)),
        },
    )
    report = Report("hog")
    report.add("equal numbers", 100 * float(same), "%")
    for name in ("ours", "torch"):
        report.add(name, [1e3 * seconds / CALLS for seconds in times[name].wall], "ms")
    report.ratio("ours to torch", times["torch"], times["ours"], ">= 5")
    for name in ("step float32", "step mixed"):
        shares = [
            100 * ours / CALLS / step
            for ours, step in zip(times["ours"].wall, times[name].wall, strict=True)
        ]
        report.add(f"ours, of the {name}", shares, "%", "< 0.3")
    report.write(args.folder)


if __name__ == "__main__":
    main()
