"""float32 means float32 on every device: no product of float32 operands has default precision."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saghog_jax.configs import finetune, pretrain
from saghog_jax.embedding import sift
from saghog_jax.embedding.describers import (
    PatchBatch,
    cls_describer,
    netrvlad_describer,
    sift_describer,
)
from saghog_jax.models import build
from saghog_jax.models.netrvlad import bag_gram, inner_products
from saghog_jax.sam.image_encoder import Convolution3
from saghog_jax.training import augment

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)\b.*")


def products(function, *arrays):
    """The products of a lowered function, one line of its program each."""
    return PRODUCT.findall(jax.jit(function).lower(*arrays).as_text())


def narrow(lines):
    """The products of float32 operands that a device may compute in fewer digits."""
    wide = [
        line for line in lines if re.search(r": \(tensor<[\dx]*f32>, tensor<[\dx]*f32>\)", line)
    ]
    # Each operand has a precision.
    return [line for line in wide if line.count("HIGHEST") != 2]


def test_the_pattern_finds_products_of_default_precision():
    x = jnp.zeros((2, 2))
    kernel = jnp.zeros((1, 1, 2, 2))
    conv = lambda x, p: jax.lax.conv_general_dilated(  # noqa: E731
        x[None, None],
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=p,
    )
    for product in (lambda x, p: jnp.matmul(x, x, precision=p), conv):
        default, highest = (
            products(functools.partial(product, p=p), x) for p in ("default", "highest")
        )
        assert narrow(default) == default
        assert len(default) == len(highest) == 1
        assert not narrow(highest)
    assert products(lambda x: jnp.matmul(x, x), x.astype(jnp.bfloat16))
    assert not narrow(products(lambda x: jnp.matmul(x, x), x.astype(jnp.bfloat16)))


def toy_run(stage, precision="float32", **changes):
    """A resolved config of a small model."""
    config = stage.get_config().copy_and_resolve_references()
    config.precision = precision
    config.model.update(width=16, depth=2, heads=2)
    config.update(changes)
    return config


IMAGES, BINARY = jnp.zeros((4, 32, 32, 3)), jnp.zeros((4, 32, 32, 1))


def pretraining(precision, remat="none"):
    """Forward and backward products of the masked autoencoder."""
    config = toy_run(pretrain, precision, remat=remat)
    model = build.model_of(config)
    variables = jax.eval_shape(lambda: build.init_variables(config, jax.random.key(0)))
    noise = jnp.zeros((4, (32 // config.model.token_size) ** 2))

    def total(variables):
        outputs = model.apply(variables, IMAGES, noise, config.mask_ratio, method="removed")
        return sum(jnp.sum(y) for y in jax.tree.leaves(outputs) if y.dtype == jnp.float32)

    return products(jax.grad(total), variables)


def finetuning(precision, **changes):
    """Forward and backward products of the writer model and its Gram matrix."""
    config = toy_run(finetune, precision, **changes)
    model = build.make_writer_model(config)
    variables = jax.eval_shape(lambda: build.init_writer_variables(config, jax.random.key(0)))

    def total(params, rest):
        outputs, _ = model.apply(
            {"params": params, **rest}, IMAGES, train=True, binary=BINARY, mutable=list(rest),
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        x, assignment = outputs
        centroids = params["netrvlad"]["centroids"]
        directions = jnp.zeros((2, *centroids.shape))
        gram = bag_gram(assignment, x, centroids, 2)
        return jnp.sum(gram) + jnp.sum(inner_products(assignment, x, centroids, directions))

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return products(jax.grad(total), variables["params"], rest)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_pretraining(remat):
    assert len(pretraining("float32", remat)) > 20
    assert not narrow(pretraining("float32", remat))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": "resnet20"},
        {"descriptor": "gmp"},
        {"descriptor": "foreground"},
        {"embed_dim": 8},
    ],
    ids=str,
)
def test_finetuning(changes):
    found = finetuning("float32", **changes)
    assert len(found) > 20
    assert not narrow(found)


def test_mixed_precision_keeps_bfloat16_products_fast():
    for found in (
        pretraining("mixed"),
        finetuning("mixed"),
        finetuning("mixed", encoder="resnet20"),
    ):
        fast = [line for line in found if "bf16" in line]
        assert len(fast) > 20
        assert not any("HIGHEST" in line for line in fast)


def test_embedding():
    config = toy_run(finetune)
    shapes = jax.eval_shape(lambda: build.init_writer_variables(config, jax.random.key(0)))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    batch, segments = PatchBatch(IMAGES, BINARY), jnp.zeros((2, 4))
    words = np.zeros((5, sift.WIDTH), np.float32)
    for describer in (
        netrvlad_describer("finetuned", config, variables, "page"),
        cls_describer("pretrained", config, variables, "page"),
        sift_describer("patch", words),
    ):
        found = products(describer.sums, describer.variables, batch, segments)
        assert found
        assert not narrow(found)


def test_augmentation():
    key = jax.random.key(0)
    matrices = lambda key: augment.random_matrices(key, 4, 32, 32, 10.0, 0.1, 0.9, 1.1)  # noqa: E731
    for found in (products(augment.to_gray, IMAGES), products(matrices, key)):
        assert found
        assert not narrow(found)


def test_segment_anything():
    model = Convolution3(4)
    x = jnp.zeros((1, 8, 8, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    found = products(jax.grad(lambda v: jnp.sum(model.apply(v, x))), variables)
    assert found
    assert not narrow(found)
