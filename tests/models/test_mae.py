"""Masked autoencoder: the small published model, its training, masks, sizes, initialisation."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from places import TESTS

from saghog_jax.models import mae, targets
from saghog_jax.models.hog import hog
from saghog_jax.models.pos_embed import sincos_2d
from saghog_jax.training import optim
from saghog_jax.weights.torch_names import from_torch_names, published_name, to_torch_names

FOLDER = TESTS / "golden"
GOLDEN = np.load(FOLDER / "mae_small.npz")
SMALL = mae.MaskedAutoencoder(width=64, depth=2, heads=8, decoder_width=64, decoder_heads=4)
RATIO = float(GOLDEN["mask_ratio"])


def images(array):
    scale = np.float32(255) if array.dtype == np.uint8 else np.float32(1)
    return jnp.asarray(array.transpose(0, 2, 3, 1).astype(np.float32) / scale)


def abstract(model, patch_size=32):
    tokens = (patch_size // model.token_size) ** 2
    image, noise = jnp.zeros((1, patch_size, patch_size, 3)), jnp.zeros((1, tokens))
    return jax.eval_shape(lambda key: model.init(key, image, noise, 0.5), jax.random.key(0))


def load(model, file, prefix):
    weights = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}
    params, report = from_torch_names(weights, abstract(model)["params"])
    assert not report.missing
    assert not report.unused
    return jax.tree.map(jnp.asarray, params)


INPUT, NOISE = images(GOLDEN["input"]), jnp.asarray(GOLDEN["noise"])
TARGET = hog(images(GOLDEN["target_img"]))
PARAMS = load(SMALL, GOLDEN, "w/")


def full_loss(model, params, image, noise, target, ratio=RATIO):
    """The published form: every token predicted, removed ones averaged."""
    out = model.apply({"params": params}, image, noise, ratio)
    return mae.masked_loss(out["pred"], target, out["mask"]), out


def removed_loss(model, params, image, noise, target, ratio=RATIO):
    """The form that training uses."""
    pred, ids = model.apply({"params": params}, image, noise, ratio, method="removed")
    return mae.removed_errors(pred, target, ids).mean(), pred


@functools.cache
def golden_pass():
    step = jax.jit(jax.value_and_grad(functools.partial(full_loss, SMALL), has_aux=True))
    return step(PARAMS, INPUT, NOISE, TARGET)


def assert_gradients(ours, stored_prefix, stored, tolerance):
    ours, _ = to_torch_names(ours, 32)
    keys = [key for key in stored.files if key.startswith(stored_prefix)]
    assert len(keys) == 48  # all but the two position embeddings
    for key in keys:
        gradient = ours[key.removeprefix(stored_prefix)]
        if gradient.shape != stored[key].shape:
            gradient = gradient[::4]
        atol = tolerance * np.abs(stored[key]).max()
        np.testing.assert_allclose(gradient, stored[key], rtol=0, atol=atol, err_msg=key)


def test_target_of_the_small_model():
    # Sides of image and token; width, depth, heads; the decoder's.
    assert GOLDEN["cfg"].tolist() == [32, 4, 64, 2, 8, 64, 1, 4]
    np.testing.assert_allclose(TARGET, GOLDEN["target"], atol=3e-7)


def test_forward_pass_is_the_published_one():
    (loss, out), _ = golden_pass()
    # Three blocks of float32 sums over up to 256 terms; a tenth of the tolerance that the
    # published code needs against itself on another machine.
    np.testing.assert_allclose(out["latent"], GOLDEN["latent"], atol=1e-5)
    np.testing.assert_allclose(out["pred"], GOLDEN["pred"], atol=1e-5)
    np.testing.assert_array_equal(out["mask"], GOLDEN["mask"])
    np.testing.assert_array_equal(out["ids_restore"], GOLDEN["ids_restore"])
    np.testing.assert_allclose(loss, GOLDEN["loss"], rtol=2e-6)


def test_every_gradient_is_the_published_one():
    assert_gradients(golden_pass()[1], "g/", GOLDEN, 5e-6)


def test_tokens_after_each_block():
    def stream(module, x):
        encoder = module.encoder
        tokens = encoder.embed(x)
        embedded = tokens[:, 1:] - jnp.asarray(sincos_2d(64, (8, 8)))
        after = [tokens]
        for block in encoder.block:
            after.append(block(after[-1]))
        return embedded, after

    embedded, after = jax.jit(lambda p, x: SMALL.apply({"params": p}, x, method=stream))(
        PARAMS, INPUT[:1]
    )
    np.testing.assert_allclose(embedded, GOLDEN["patch_embed"], atol=2e-6)
    for i, tokens in enumerate(after):
        np.testing.assert_allclose(tokens, GOLDEN[f"tok{i}"], atol=1e-5)


def test_removed_form_equals_the_full_form():
    (loss, out), gradient = golden_pass()
    step = jax.jit(jax.value_and_grad(functools.partial(removed_loss, SMALL), has_aux=True))
    (ours, pred), our_gradient = step(PARAMS, INPUT, NOISE, TARGET)
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    ids = np.asarray(mae.random_masking(NOISE, RATIO).ids_removed)
    np.testing.assert_allclose(
        pred, np.take_along_axis(np.asarray(out["pred"]), ids[:, :, None], 1), atol=1e-5
    )
    for a, b in zip(jax.tree.leaves(our_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    # And hence the published gradients, by the form that training uses.
    assert_gradients(our_gradient, "g/", GOLDEN, 5e-6)


def test_removed_form_with_a_deeper_decoder():
    model = mae.MaskedAutoencoder(
        patch_size=16, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=3,
        decoder_heads=2,
    )  # fmt: skip
    image = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    noise = mae.mask_noise(jax.random.key(2), 3, 16)
    target = jax.random.normal(jax.random.key(3), (3, 16, 9))
    params = jax.jit(model.init, static_argnums=3)(jax.random.key(4), image, noise, 0.6)["params"]
    both = [
        jax.jit(jax.value_and_grad(lambda p, f=f: f(model, p, image, noise, target, 0.6)[0]))
        for f in (full_loss, removed_loss)
    ]
    (a, gradient_a), (b, gradient_b) = (f(params) for f in both)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(gradient_a), jax.tree.leaves(gradient_b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(x).max() + 1e-9)


def test_five_optimiser_steps():
    golden = np.load(FOLDER / "mae_steps.npz")
    # Three steps of warm-up, nine of cosine: the stored rates.
    section = ConfigDict({
        "learning_rate": 8e-4, "start_learning_rate": 8e-5, "final_learning_rate": 8e-6,
        "warmup_steps": 3, "weight_decay": float(golden["wd"][0]), "b1": 0.9, "b2": 0.999,
        "eps": 1e-8, "clip_norm": float(golden["clip"]),
    })  # fmt: skip
    np.testing.assert_allclose(optim.learning_rate(np.arange(5), section, 12, np),
                               golden["f64_lr"], rtol=1e-9)  # fmt: skip
    tx = optim.make_optimizer(section, 12)

    @jax.jit
    def step(params, state, image, noise):
        (loss, _), gradient = jax.value_and_grad(
            functools.partial(removed_loss, SMALL), has_aux=True
        )(params, image, noise, TARGET)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient)))
        updates, state = tx.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state, loss, norm

    params, state = PARAMS, tx.init(PARAMS)
    for i in range(5):
        params, state, loss, norm = step(
            params, state, images(golden["input"][i]), jnp.asarray(golden["noise"][i])
        )
        # Rounding grows with the steps: Adam divides by small roots.
        np.testing.assert_allclose(loss, golden["losses"][i : i + 1], rtol=2e-5)
        np.testing.assert_allclose(norm, golden["grad_norms"][i : i + 1], rtol=2e-4)
    change, _ = to_torch_names(jax.tree.map(jnp.subtract, params, PARAMS), 32)
    keys = [key for key in golden.files if key.startswith("delta/")]
    assert len(keys) == 48
    for key in keys:
        ours = change[key.removeprefix("delta/")]
        stored = golden[key].astype(np.float32)
        ours = ours if ours.shape == stored.shape else ours[::4]
        # Changes are up to 3e-3 and stored with 11 bits; where gradients are rounding noise Adam
        # still makes full steps, in very few elements.
        error = np.sort(np.abs(ours - stored), axis=None)
        most = error[: int(np.ceil(0.99 * error.size))]
        np.testing.assert_allclose(most, 0, atol=5e-6, err_msg=key)
        assert error.mean() < 2e-6, key


def test_published_features():
    features = jax.jit(
        lambda p, x: SMALL.apply({"params": p}, x, method=lambda m, x: m.encoder.features(x))
    )(PARAMS, INPUT)
    np.testing.assert_allclose(features, GOLDEN["features"], atol=1e-5)


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.6, 0.75, 0.9])
def test_masks_by_ratio(ratio):
    masking = mae.random_masking(NOISE, ratio)
    assert masking.ids_keep.shape[1] == int(GOLDEN[f"rm_{ratio}_keep"])
    np.testing.assert_array_equal(masking.mask, GOLDEN[f"rm_{ratio}_mask"])


def test_masking_by_sorting():
    noise = np.random.default_rng(0).random((3, 9)).astype(np.float32)
    masking = mae.random_masking(jnp.asarray(noise), 0.6)
    for i, row in enumerate(noise):
        order = sorted(range(9), key=lambda j: row[j])
        assert masking.ids_keep[i].tolist() == order[:3]
        assert masking.ids_removed[i].tolist() == order[3:]
        assert [order[j] for j in masking.ids_restore[i]] == list(range(9))
        assert masking.mask[i].tolist() == [float(j in order[3:]) for j in range(9)]


def test_each_patch_has_its_own_mask():
    masking = mae.random_masking(mae.mask_noise(jax.random.key(0), 4, 64), 0.75)
    assert len({tuple(sorted(row)) for row in np.asarray(masking.ids_keep).tolist()}) == 4


def test_number_of_kept_tokens():
    for ratio in (0.4, 0.5, 0.6, 0.75, 0.9):
        for tokens in (16, 64):
            assert mae.num_keep(tokens, ratio) == int(tokens * (1 - ratio))
    assert mae.num_keep(100, 0.9) == 10  # int() of the float product gives 9
    assert mae.num_keep(10, 0.9) == 1
    for tokens, ratio in [(64, 0.99), (64, 0.0), (64, 1.0), (64, -0.5)]:
        with pytest.raises(ValueError, match=f"mask_ratio {ratio} keeps"):
            mae.num_keep(tokens, ratio)


@pytest.mark.parametrize("kind", ["rgb", "pix1", "pix3"])
def test_losses_of_other_targets(kind):
    golden = np.load(FOLDER / "mae_targets.npz")
    image = images(golden[f"{kind}_target_img"])
    target = hog(image, 9, 4, 8) if kind == "rgb" else targets.normalized_pixels(image, 8)
    if kind == "rgb":
        np.testing.assert_allclose(target, golden["rgb_target"], atol=1e-6)
    mask = mae.random_masking(jnp.asarray(golden["rgb_noise"]), 0.5).mask
    np.testing.assert_array_equal(mask, golden["rgb_mask"])
    loss = mae.masked_loss(jnp.asarray(golden[f"{kind}_pred"]), target, mask)
    np.testing.assert_allclose(loss, golden[f"{kind}_loss"], rtol=2e-6)


def test_forward_pass_with_tokens_of_eight_pixels():
    golden = np.load(FOLDER / "mae_targets.npz")
    model = mae.MaskedAutoencoder(
        token_size=8, width=32, depth=1, heads=4, decoder_width=32, decoder_heads=2, target_dim=36
    )
    params = load(model, golden, "rgb_w/")
    apply = jax.jit(lambda p, x, noise: model.apply({"params": p}, x, noise, 0.5))
    out = apply(params, images(golden["rgb_input"]), jnp.asarray(golden["rgb_noise"]))
    np.testing.assert_allclose(out["pred"], golden["rgb_pred"], atol=1e-5)


def test_parameter_counts_at_paper_size():
    counts = json.loads((FOLDER / "param_counts.json").read_text())
    params = abstract(mae.MaskedAutoencoder())["params"]
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))  # noqa: E731
    encoder, decoder = params["encoder"], params["decoder"]
    ours = {
        "total_trainable": count(params),
        "encoder_trainable": count(encoder),
        "decoder_trainable": count(decoder),
        "per_encoder_block": count(encoder["block_3"]),
        "patch_embed": count(encoder["patch_embed"]),
        "decoder_block": count(decoder["block_0"]),
        "decoder_embed": count(decoder["embed"]),
        "decoder_pred": count(decoder["pred"]),
        # Fixed, and no parameter of ours: a table.
        "pos_embed": 65 * sincos_2d(512, (8, 8)).shape[1],
        "decoder_pos_embed": 65 * sincos_2d(512, (8, 8)).shape[1],
    }
    ours["encoder_all"] = ours["encoder_trainable"] + ours["pos_embed"]
    ours["decoder_all"] = ours["decoder_trainable"] + ours["decoder_pos_embed"]
    ours["total_all"] = ours["encoder_all"] + ours["decoder_all"]
    assert ours == counts


def test_initial_weights_have_the_published_statistics():
    stats = json.loads((FOLDER / "init_stats.json").read_text())
    model = mae.MaskedAutoencoder(depth=1)
    params = jax.jit(model.init, static_argnums=3)(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 64)), 0.75
    )["params"]
    weights, _ = to_torch_names(params, 32, target_channels=1)
    for name, (shape, deviation, largest) in stats.items():
        ours = weights[name]
        assert list(ours.shape) == shape, name
        # Sampling error of a standard deviation is a share 1 / sqrt(2 n) of it, of both samples;
        # the largest of many uniform numbers is near the bound, of few normal ones it is loose.
        assert abs(ours.std() - deviation) <= 1e-5 + 5 * deviation / math.sqrt(ours.size), name
        loose = 0.4 if "token" in name else 3 / ours.size**0.5 if "patch" in name else 2e-2
        assert abs(np.abs(ours).max() - largest) <= loose * largest + 1e-6, name


def test_bfloat16_products_stay_near_float32():
    model = mae.MaskedAutoencoder(
        width=64, depth=2, heads=8, decoder_width=64, decoder_heads=4, dtype=jnp.bfloat16
    )
    (exact, _), gradient = golden_pass()
    step = jax.jit(jax.value_and_grad(functools.partial(removed_loss, model), has_aux=True))
    (loss, pred), ours = step(PARAMS, INPUT, NOISE, TARGET)
    assert pred.dtype == jnp.float32
    # Operands have 8 bits: a share 4e-3 each, averaged over many terms.
    np.testing.assert_allclose(loss, exact, rtol=5e-3)
    assert float(loss) != float(exact)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b) + 1e-6


def test_widths_that_do_not_divide_are_refused():
    image, noise = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 64))
    for fields, message in [
        ({"width": 60, "heads": 8}, "width 60 is not divisible by 8 heads"),
        ({"decoder_width": 40, "decoder_heads": 16}, "decoder width 40 is not divisible by 16"),
    ]:
        model = mae.MaskedAutoencoder(depth=1, **fields)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda m=model: m.init(jax.random.key(0), image, noise, 0.75))
    with pytest.raises(ValueError, match="30 x 32 pixels do not divide into tokens of 4"):
        SMALL.apply({"params": PARAMS}, jnp.zeros((1, 30, 32, 3)), noise, 0.75)


def test_published_names_cover_every_parameter():
    params = abstract(mae.MaskedAutoencoder(depth=2))["params"]
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [published_name(jax.tree_util.keystr(p, simple=True, separator="/")) for p, _ in paths]
    assert None not in names
    assert len(set(names)) == len(names)
