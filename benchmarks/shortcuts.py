"""The exact shortcuts against the plain forms they replace: time, memory, and that both agree.

    python -m benchmarks.shortcuts [--rounds 7] [--only gram,pages] [--folder FOLDER]

Each shortcut and its plain form are compiled whole, in float32, and run alternately; what training
uses is run with its gradients.

  gram     cosine similarities of a batch: factorised, against the product of written-out vectors
  pages    page sums of unit vectors: one product a page, against the sum of written-out vectors
  encoder  CLS features: the last block for CLS alone, against all tokens
  decoder  pretraining loss: removed tokens alone, against every token in its place

Sizes are the paper's but for the batches of the last two, and at the default configs' beside it for
those two. Prints times (plain / ours), scratch memory as the compiler plans it, and the largest
difference of values and of gradients (on the scale of the largest gradient).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import FOLDER, Report, alternate
from saghog_jax.configs import training
from saghog_jax.input_pipeline.errors import unknown_choice
from saghog_jax.models.build import make_encoder, make_mae
from saghog_jax.models.mae import mask_noise, masked_loss, random_masking, removed_errors
from saghog_jax.models.netrvlad import cosine_gram, l2_normalize, page_sum

CASES = ("gram", "pages", "encoder", "decoder")
CLUSTERS, WIDTH = 100, 512


def descriptors(b: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Assignments [b, v], features [b, d] and centroids [v, d] of paper size."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(b, WIDTH))
    centroids = rng.normal(size=(CLUSTERS, WIDTH))
    return tuple(
        jnp.asarray(array, jnp.float32)
        for array in (rng.dirichlet(np.ones(CLUSTERS), b), x, centroids)
    )


def written_out(a: jax.Array, x: jax.Array, c: jax.Array) -> jax.Array:
    """The vectors [b, v, d] of one descriptor a patch."""
    return a[:, :, None] * (x[:, None] - c)


def gram(report: Report, rounds: int, b: int) -> None:
    """Cosine similarities and their gradients."""

    def plain(a, x, c):
        y = l2_normalize(written_out(a, x, c).reshape(b, -1))
        return jnp.matmul(y, y.T, precision="highest")

    weight = jnp.asarray(np.random.default_rng(1).normal(size=(b, b)) / b, jnp.float32)

    def with_gradients(function: Callable) -> Callable:
        def objective(*arrays):
            value = function(*arrays)
            return jnp.sum(weight * value), value

        return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)

    compare(report, rounds, f"gram, {b} patches",
            with_gradients(plain), with_gradients(cosine_gram), descriptors(b))  # fmt: skip


def pages(report: Report, rounds: int, b: int, s: int = 16) -> None:
    """Page sums; embedding needs no gradients."""

    def plain(a, x, c, segments):
        y = l2_normalize(written_out(a, x, c).reshape(b, -1))
        return jnp.matmul(segments, y, precision="highest").reshape(s, *c.shape)

    segments = jnp.asarray(np.arange(b)[None] * s // b == np.arange(s)[:, None], jnp.float32)
    compare(report, rounds, f"pages, {b} patches of {s}",
            plain, page_sum, (*descriptors(b), segments))  # fmt: skip


def encoder(report: Report, rounds: int, size: str, b: int) -> None:
    """CLS features and their gradients."""
    module = make_encoder(training.model_config(size), jnp.float32)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(b, 32, 32, 3)), jnp.float32)
    params = jax.jit(module.init)(jax.random.key(0), images[:1])

    def cls(method: str) -> Callable:
        def objective(params, images):
            y = module.apply(params, images, method=method)
            y = y if method == "features" else y[:, 0]
            return jnp.mean(jnp.sin(3 * y)), y

        return jax.value_and_grad(objective, has_aux=True)

    compare(report, rounds, f"encoder {size}, {b} patches",
            cls("tokens"), cls("features"), (params, images))  # fmt: skip


def decoder(report: Report, rounds: int, size: str, b: int) -> None:
    """The loss of pretraining and its gradients, whole and of the decoder alone."""
    module = make_mae(training.model_config(size), 9, jnp.float32)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(b, 32, 32, 3)), jnp.float32)
    target = jnp.asarray(rng.random((b, 64, 9)), jnp.float32)
    noise = mask_noise(jax.random.key(1), b, 64)
    params = jax.jit(module.init, static_argnums=3)(jax.random.key(0), images[:1], noise[:1], 0.75)
    width = module.width
    latent = jnp.asarray(rng.normal(size=(b, 17, width)), jnp.float32)

    def full(params, images, noise, target):
        out = module.apply(params, images, noise, 0.75)
        return masked_loss(out["pred"], target, out["mask"])

    def removed(params, images, noise, target):
        pred, ids = module.apply(params, images, noise, 0.75, method="removed")
        return removed_errors(pred, target, ids).mean()

    compare(report, rounds, f"pretraining {size}, {b} patches", jax.value_and_grad(full),
            jax.value_and_grad(removed), (params, images, noise, target))  # fmt: skip

    def decoder_full(params, latent, noise, target):
        masking = random_masking(noise, 0.75)
        pred = module.apply(params, latent, masking, method=lambda m, *x: m.decoder(*x))
        return masked_loss(pred, target, masking.mask)

    def decoder_removed(params, latent, noise, target):
        masking = random_masking(noise, 0.75)
        pred = module.apply(params, latent, masking, method=lambda m, *x: m.decoder.removed(*x))
        return removed_errors(pred, target, masking.ids_removed).mean()

    gradients = lambda f: jax.value_and_grad(f, (0, 1))  # noqa: E731
    compare(report, rounds, f"decoder {size}, {b} patches", gradients(decoder_full),
            gradients(decoder_removed), (params, latent, noise, target))  # fmt: skip


def compare(
    report: Report, rounds: int, name: str, plain: Callable, ours: Callable, arrays: tuple
) -> None:
    """Compiles both, adds how far they differ, their scratch memory and their times."""
    sides = {side: jax.jit(f).lower(*arrays).compile() for side, f in [("plain", plain),
                                                                       ("ours", ours)]}  # fmt: skip
    results = [sides[side](*arrays) for side in ("plain", "ours")]
    differ = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), *results)
    if isinstance(differ, tuple):
        scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(results[0][1]))
        report.add(f"{name}: values differ by", max(jax.tree.leaves(differ[0])), "")
        report.add(f"{name}: gradients differ by",
                   max(jax.tree.leaves(differ[1])) / scale, "of the largest")  # fmt: skip
    else:
        report.add(f"{name}: values differ by", differ, "")
    for side, function in sides.items():
        scratch = function.memory_analysis().temp_size_in_bytes / 2**20
        report.add(f"{name}: scratch memory, {side}", scratch, "MiB")
    run = {side: lambda f=f: jax.block_until_ready(f(*arrays)) for side, f in sides.items()}
    times = alternate(rounds, **run)
    report.add(f"{name}: plain", times["plain"].wall, "s")
    report.add(f"{name}: ours", times["ours"].wall, "s")
    report.add(f"{name}: CPU of plain / ours",
               [a / b for a, b in zip(times["plain"].cpu, times["ours"].cpu)], "times")  # fmt: skip
    report.ratio(f"{name}: plain / ours", times["plain"], times["ours"])


def main() -> None:
    """Runs the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--patches", type=int, default=1024, help="of gram and pages")
    parser.add_argument("--batch", type=int, default=64, help="patches of encoder and decoder")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    cases = arguments.only.split(",")
    for case in set(cases) - set(CASES):
        parser.error(unknown_choice("case", case, CASES))
    report = Report("shortcuts")
    for case in cases:
        if case in ("gram", "pages"):
            {"gram": gram, "pages": pages}[case](report, arguments.rounds, arguments.patches)
        else:
            for size in ("paper", "cpu"):
                {"encoder": encoder, "decoder": decoder}[case](
                    report, arguments.rounds, size, arguments.batch
                )
    report.write(arguments.folder)


if __name__ == "__main__":
    main()
