"""Writer model: stored passes and gradients, the shortcut for CLS, descriptors, dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

from saghog_jax.models.inputs import three_channels
from saghog_jax.models.netrvlad import generalized_max_pool, l2_normalize, vlad
from saghog_jax.models.vit import Encoder
from saghog_jax.models.writer_model import WriterModel, token_ink
from saghog_jax.weights.torch_names import architecture, from_torch_names, to_torch_names

GOLDEN = np.load(TESTS / "golden" / "netrvlad.npz")
ENCODER = Encoder(token_size=8, width=32, depth=2, heads=4)
IMAGES = jnp.asarray(GOLDEN["wrap_in"].transpose(0, 2, 3, 1))


def init(model, *arguments):
    return jax.jit(lambda key: model.init(key, *arguments))(jax.random.key(0))["params"]


def run(model, params, *arguments, **keywords):
    return jax.jit(lambda p: model.apply({"params": p}, *arguments, **keywords))(params)


def test_one_channel_stands_for_three_equal_ones():
    params = init(ENCODER, IMAGES)
    assert params["patch_embed"]["proj"]["kernel"].shape == (8 * 8 * 3, 32)

    @jax.jit
    def gradient(params, images):
        def objective(params):
            y = ENCODER.apply({"params": params}, images)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        return jax.value_and_grad(objective, has_aux=True)(params)

    grey = IMAGES[..., :1]
    (_, one), ours = gradient(params, grey)
    (_, three), theirs = gradient(params, three_channels(grey))
    # Sums of three products in another order.
    np.testing.assert_allclose(one, three, atol=1e-5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))
    assert not np.allclose(one, run(ENCODER, params, IMAGES), atol=1e-2)


@pytest.mark.parametrize("tag", ["wrap", "wrap20"])
def test_published_descriptor_and_gradients(tag):
    prefix = f"{tag}_w/"
    weights = {k.removeprefix(prefix): GOLDEN[k] for k in GOLDEN.files if k.startswith(prefix)}
    sizes = architecture(weights)
    model = WriterModel(ENCODER, sizes["num_clusters"], embed_dim=sizes.get("embed_dim", 0))
    x = jnp.asarray(GOLDEN[f"{tag}_in"].transpose(0, 2, 3, 1))
    template = jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0))["params"]
    params, report = from_torch_names(weights, template)
    assert not report.missing
    assert not report.unused

    @jax.jit
    def gradient(params):
        def objective(params):
            features, assignment = model.apply({"params": params}, x)
            y = vlad(assignment, features, params["netrvlad"]["centroids"])
            y = l2_normalize(y.reshape(len(x), -1))
            return jnp.sum(y * GOLDEN[f"{tag}_cot"]), y

        return jax.value_and_grad(objective, has_aux=True)(params)

    (_, y), gradients = gradient(jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(y, GOLDEN[f"{tag}_out"], atol=2e-6)
    ours, _ = to_torch_names(gradients, 32)
    keys = [key for key in GOLDEN.files if key.startswith(f"{tag}_g/")]
    assert len(keys) >= 7
    for key in keys:
        stored = GOLDEN[key]
        gradient = ours[key.removeprefix(f"{tag}_g/")]
        atol = 5e-6 * np.abs(stored).max()
        np.testing.assert_allclose(gradient, stored, rtol=0, atol=atol, err_msg=key)


def test_parameters_of_the_head_at_paper_size():
    model = WriterModel(Encoder())
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3))),
                            jax.random.key(0))["params"]  # fmt: skip
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["netrvlad"])) == 102_500
    assert set(shapes) == {"encoder", "netrvlad"}


def test_features_are_the_first_of_all_tokens():
    params = init(ENCODER, IMAGES)

    def both(method):
        def objective(params, x):
            y = ENCODER.apply({"params": params}, x, method=method)
            y = y if method == "features" else y[:, 0]
            return jnp.sum(jnp.sin(3 * y)), y

        return jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(params, IMAGES)

    (_, full), full_gradients = both("tokens")
    (_, pruned), gradients = both("features")
    np.testing.assert_allclose(pruned, full, atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(full_gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-9)
    everything = run(ENCODER, params, IMAGES)
    np.testing.assert_allclose(everything[:, 0], pruned, atol=1e-5)


@pytest.mark.parametrize("embed_dim", [0, 20])
def test_dropout_acts_in_training_only(embed_dim):
    model = WriterModel(ENCODER, 3, embed_dim=embed_dim)
    params = init(model, IMAGES)
    encode = lambda key, train: run(  # noqa: E731
        model, params, IMAGES, train, method="encode", rngs={"dropout": key}
    )
    keys = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(encode(keys[0], False), encode(keys[1], False))
    first = encode(keys[0], True)
    assert not np.allclose(first, encode(keys[1], True), atol=1e-3)
    np.testing.assert_array_equal(first, encode(keys[0], True))


@pytest.mark.parametrize("descriptor", ["cls", "foreground"])
def test_a_patch_loses_the_same_in_any_batch(descriptor):
    none = Encoder(token_size=8, width=32, depth=2, heads=4, dropout=0.0)
    model = WriterModel(none, 3, embed_dim=20, descriptor=descriptor)
    params = init(model, IMAGES, False, jnp.zeros((*IMAGES.shape[:3], 1)))
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    encode = lambda x, train, keys: run(  # noqa: E731
        model, params, x, train, method="encode", dropout_keys=keys
    )
    whole = encode(IMAGES, True, keys)
    np.testing.assert_allclose(encode(IMAGES[1:], True, keys[1:]), whole[1:], atol=1e-5)
    for other in (encode(IMAGES, True, keys[::-1]), encode(IMAGES, False, keys)):
        assert not np.allclose(other, whole, atol=1e-3)


def test_dropout_rate_is_that_of_the_encoder():
    none = Encoder(token_size=8, width=32, depth=2, heads=4, dropout=0.0)
    params = init(none, IMAGES)
    rngs = {"dropout": jax.random.key(1)}
    trained = run(none, params, IMAGES, True, method="features", rngs=rngs)
    np.testing.assert_array_equal(trained, run(none, params, IMAGES, method="features"))


def test_foreground_tokens_are_descriptors():
    binary = jnp.ones((5, 32, 32, 1)).at[:, 8:16, 16:20].set(0)  # half of token row 1, column 2
    binary = binary.at[:, 0, 0].set(0)  # one pixel of token 0: a share of 1/64
    ink = np.asarray(token_ink(binary, 8))
    assert ink[0].nonzero()[0].tolist() == [0, 6]
    np.testing.assert_allclose(ink[0, [0, 6]], [1 / 64, 0.5])
    for least, expected in [(0.4, [6]), (0.01, [0, 6]), (0.6, [])]:
        model = WriterModel(ENCODER, 3, descriptor="foreground", min_token_ink=least)
        params = init(model, IMAGES, False, binary)
        features, assignment = run(model, params, IMAGES, binary=binary)
        assert features.shape == (5, 16, 32)
        sums = np.asarray(assignment).sum(-1)
        assert sums[0].nonzero()[0].tolist() == expected
        np.testing.assert_allclose(sums[:, expected], 1, rtol=1e-6)
    tokens = run(ENCODER, params["encoder"], IMAGES, method="tokens")
    np.testing.assert_array_equal(features, tokens[:, 1:])
    with pytest.raises(ValueError, match="'foreground' needs the binary patches"):
        model.apply({"params": params}, IMAGES)


def test_generalized_max_pooling_of_all_tokens():
    model = WriterModel(ENCODER, 3, descriptor="gmp")
    params = init(model, IMAGES)
    np.testing.assert_array_equal(params["ridge"], [1000])
    features, assignment = run(model, params, IMAGES)
    tokens = run(ENCODER, params["encoder"], IMAGES, method="tokens")
    expected = jax.jit(generalized_max_pool)(tokens, jnp.float32(1000))
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert assignment.shape == (5, 3)


def test_netvlad_normalises_for_the_assignment():
    a, b = (WriterModel(ENCODER, 3, normalized=flag) for flag in (False, True))
    params = init(a, IMAGES)
    (_, plain), (_, normalized) = (run(m, params, IMAGES) for m in (a, b))
    assert not np.allclose(plain, normalized, atol=1e-3)


def test_unknown_descriptor_names_the_known_ones():
    with pytest.raises(ValueError, match="'clss', known: cls, gmp, foreground"):
        init(WriterModel(ENCODER, 3, descriptor="clss"), IMAGES)
