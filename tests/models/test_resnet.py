"""ResNet baselines: parameters, shapes, batch statistics, a naive forward pass, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saghog_jax.models.resnet import ResNet
from saghog_jax.models.writer_model import WriterModel

IMAGES = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))


@pytest.fixture(scope="module")
def variables():
    return jax.jit(ResNet().init)(jax.random.key(1), IMAGES)


# The counts of the paper's networks for CIFAR-10 (269,722 and 853,018) without the last layer.
@pytest.mark.parametrize(("size", "count"), [("resnet20", 269_072), ("resnet56", 852_368)])
def test_parameter_counts(size, count):
    shapes = jax.eval_shape(lambda: ResNet(size).init(jax.random.key(0), IMAGES))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


def test_features_are_the_pooled_map(variables):
    tokens = jax.jit(ResNet().apply)(variables, IMAGES)
    assert tokens.shape == (4, 1 + 16, 64)
    features = jax.jit(lambda v: ResNet().apply(v, IMAGES, method="features"))(variables)
    np.testing.assert_allclose(features, tokens[:, 1:].mean(1), atol=1e-5)
    np.testing.assert_allclose(features, tokens[:, 0], atol=1e-6)


def test_one_channel_stands_for_three_equal_ones(variables):
    grey = IMAGES[..., :1]
    apply = jax.jit(ResNet().apply)
    three = jnp.concatenate([grey] * 3, axis=-1)
    np.testing.assert_array_equal(apply(variables, grey), apply(variables, three))


def test_equals_the_definition(variables):
    """One image through convolutions as sums of shifted products, in double precision."""

    def conv_norm(x, params, stats, stride):
        kernel = np.asarray(params["conv"]["kernel"], np.float64)
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        h, w, _ = x.shape
        y = sum(
            padded[i : i + h : stride, j : j + w : stride] @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        )
        scale, bias = params["norm"]["scale"], params["norm"]["bias"]
        mean, variance = stats["norm"]["mean"], stats["norm"]["var"]
        return (y - mean) / np.sqrt(np.asarray(variance) + 1e-5) * scale + bias

    params, stats = variables["params"], variables["batch_stats"]
    x = np.asarray(IMAGES[0], np.float64)
    x = np.maximum(conv_norm(x, params["stem"], stats["stem"], 1), 0)
    for stage in range(3):
        for i in range(3):
            name, stride = f"stage_{stage}_block_{i}", 2 if stage and not i else 1
            p, s = params[name], stats[name]
            y = np.maximum(conv_norm(x, p["first"], s["first"], stride), 0)
            y = conv_norm(y, p["second"], s["second"], 1)
            x = x[::stride, ::stride]
            side = (y.shape[-1] - x.shape[-1]) // 2
            x = np.maximum(np.pad(x, ((0, 0), (0, 0), (side, side))) + y, 0)
    features = jax.jit(lambda v: ResNet().apply(v, IMAGES[:1], method="features"))(variables)
    np.testing.assert_allclose(features[0], x.mean((0, 1)), rtol=1e-4, atol=1e-5)


def test_training_uses_and_updates_batch_statistics(variables):
    apply = jax.jit(
        lambda v, x: ResNet().apply(v, x, True, mutable=["batch_stats"], method="features")
    )
    trained, update = apply(variables, IMAGES)
    plain = jax.jit(lambda v: ResNet().apply(v, IMAGES, method="features"))(variables)
    assert not np.allclose(trained, plain, atol=1e-2)
    before, after = variables["batch_stats"]["stem"]["norm"], update["batch_stats"]["stem"]["norm"]
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    y = jax.lax.conv_general_dilated(
        IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.9 * before["mean"] + 0.1 * y.mean((0, 1, 2))
    np.testing.assert_allclose(after["mean"], expected, atol=1e-5)


def test_as_encoder_of_a_writer_model():
    binary = (IMAGES[..., :1] > 0).astype(jnp.float32)
    for descriptor, shape in [("cls", (4, 64)), ("gmp", (4, 64)), ("foreground", (4, 16, 64))]:
        model = WriterModel(ResNet(), 5, descriptor=descriptor)
        (features, assignment), variables = jax.eval_shape(
            lambda m=model: m.init_with_output(jax.random.key(0), IMAGES, False, binary)
        )
        assert features.shape == shape
        assert assignment.shape == (*shape[:-1], 5)
        assert set(variables) == {"params", "batch_stats"}


def test_bfloat16_convolutions_stay_near_float32(variables):
    exact, rounded = (
        jax.jit(lambda v, d=dtype: ResNet(dtype=d).apply(v, IMAGES, method="features"))(variables)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_unknown_depth_names_the_known_ones():
    with pytest.raises(ValueError, match="'resnet18', known: resnet20, resnet56"):
        jax.eval_shape(lambda: ResNet("resnet18").init(jax.random.key(0), IMAGES))
