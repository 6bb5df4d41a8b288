"""SAM against segment-anything at tiny random weights, its weights by name, and ViT-H by shape."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from places import TESTS

from benchmarks.sam import decoder_flops, encoder_flops
from saghog_jax.sam import image_encoder
from saghog_jax.sam import model as sam
from saghog_jax.sam.weights import from_published, published_name, sizes_from, to_ours

GOLDEN = np.load(TESTS / "golden" / "sam_tiny.npz")
VIT_H = json.loads((TESTS / "golden" / "sam_vit_h.json").read_text())
HUGGING_FACE = json.loads((TESTS / "golden" / "sam_hugging_face.json").read_text())
WEIGHTS = {k[2:]: GOLDEN[k] for k in GOLDEN.files if k.startswith("w/")}
PARAMS, SIZES, _ = from_published(WEIGHTS)
NO_POINT, BOX_START, BOX_END = -1, 2, 3


def apply(method, *arguments, sizes=SIZES, dtype=jnp.float32):
    model = sam.Sam(sizes, dtype)
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(PARAMS, *arguments)


def close(ours, published, tolerance=2e-5):
    scale = np.abs(published).max()
    np.testing.assert_allclose(np.asarray(ours) / scale, published / scale, atol=tolerance, rtol=0)


def test_sizes_are_read_from_shapes():
    assert sam.SamSizes(
        width=16, depth=2, heads=2, global_blocks=(1,), image_size=64, window=3, features=16,
        decoder_inner=8, decoder_hidden=24, iou_hidden=12, mask_width=4,
    ) == SIZES  # fmt: skip


@pytest.mark.parametrize("head_by_head", [False, True])
def test_embedding(head_by_head, monkeypatch):
    monkeypatch.setattr(sam, "_TOKENS_AT_ONCE", 0 if head_by_head else 2048)
    close(apply("encode", GOLDEN["image"].astype(np.float32)), GOLDEN["embedding"])


def prompts(kind):
    """The prompts of make_sam.py with the points that the published prompt encoder adds."""
    points, labels = GOLDEN["points"], GOLDEN["labels"]
    if kind == "boxes":
        corners = GOLDEN["boxes"].reshape(3, 2, 2)
        return (
            np.concatenate([points, corners], 1),
            np.concatenate([labels, np.tile(np.int32([[BOX_START, BOX_END]]), (3, 1))], 1),
        )
    filled = np.pad(points, ((0, 0), (0, 1), (0, 0)))
    prompt = filled, np.pad(labels, ((0, 0), (0, 1)), constant_values=NO_POINT)
    return (*prompt, GOLDEN["masks"].astype(np.float32)) if kind == "masks" else prompt


@pytest.mark.parametrize("kind", ["points", "boxes", "masks"])
def test_logits_and_iou(kind):
    logits, iou = apply("decode", GOLDEN["embedding"][0], *prompts(kind))
    close(logits, GOLDEN[f"{kind}_logits"])
    close(iou, GOLDEN[f"{kind}_iou"])


def test_operands_of_half_the_width_change_little_but_something():
    exact = GOLDEN["embedding"]
    rounded = apply("encode", GOLDEN["image"].astype(np.float32), dtype=jnp.bfloat16)
    error = np.abs(np.asarray(rounded) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1


def test_windows_and_their_inverse():
    x = jnp.arange(2 * 5 * 5 * 3, dtype=jnp.float32).reshape(2, 5, 5, 3)
    windows = image_encoder.to_windows(x, 2)
    assert windows.shape == (2 * 9, 2, 2, 3)
    np.testing.assert_array_equal(windows[1, 1, 0], x[0, 1, 2])
    np.testing.assert_array_equal(windows[2, :, 1], 0)
    np.testing.assert_array_equal(image_encoder.from_windows(windows, 5), x)


def test_vit_h_has_the_published_parameters_by_name_and_shape():
    ours = flatten_dict(sam.parameter_shapes(sam.SIZES["vit_h"]), sep="/")
    assert {published_name(path) for path in ours} == set(VIT_H)
    for path, leaf in ours.items():
        # An array without memory stands in for the published one.
        array = np.broadcast_to(np.float32(0), VIT_H[published_name(path)])
        if array.ndim == 1 or not path.endswith("/kernel"):
            assert array.shape == leaf.shape, path
        elif array.size < 5e6:
            assert to_ours(path, array).shape == leaf.shape, path
        else:
            assert array.T.shape == leaf.shape, path
    assert sum(np.prod(leaf.shape) for leaf in ours.values()) == 641_090_864


@pytest.mark.parametrize(("name", "parameters"), [("vit_b", 93_735_728), ("vit_l", 312_343_088)])
def test_smaller_sizes_by_count(name, parameters):
    leaves = jax.tree.leaves(sam.parameter_shapes(sam.SIZES[name]))
    assert sum(np.prod(leaf.shape) for leaf in leaves) == parameters


def test_vit_h_sizes_from_its_shapes():
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in VIT_H.items()}
    assert sizes_from(shapes) == sam.SIZES["vit_h"]


def hugging_face(name):
    """The name that Hugging Face's conversion gives, written down apart from the importer."""
    for old, new in [
        ("image_encoder.blocks", "vision_encoder.layers"), ("image_encoder", "vision_encoder"),
        ("patch_embed.proj", "patch_embed.projection"), ("neck.0", "neck.conv1"),
        ("neck.1", "neck.layer_norm1"), ("neck.2", "neck.conv2"), ("neck.3", "neck.layer_norm2"),
        ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        ("point_embeddings", "point_embed"), ("mask_downscaling.0", "mask_embed.conv1"),
        ("mask_downscaling.1", "mask_embed.layer_norm1"),
        ("mask_downscaling.3", "mask_embed.conv2"),
        ("mask_downscaling.4", "mask_embed.layer_norm2"),
        ("mask_downscaling.6", "mask_embed.conv3"), ("output_upscaling.0", "upscale_conv1"),
        ("output_upscaling.1", "upscale_layer_norm"), ("output_upscaling.3", "upscale_conv2"),
        (".norm", ".layer_norm"),
    ]:  # fmt: skip
        name = name.replace(old, new)
    if "_mlps." in name or "_head." in name:
        for old, new in [(".layers.0", ".proj_in"), (".layers.2", ".proj_out"),
                         (".layers.1", ".layers.0")]:  # fmt: skip
            name = name.replace(old, new)
    return name


def test_names_of_hugging_face():
    frequencies = "shared_image_embedding.positional_embedding"
    renamed = {hugging_face(name): array for name, array in WEIGHTS.items()}
    renamed[frequencies] = WEIGHTS["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert {name: list(array.shape) for name, array in renamed.items()} == HUGGING_FACE
    params, sizes, report = from_published(renamed)
    assert sizes == SIZES
    assert jax.tree.all(jax.tree.map(np.array_equal, params, PARAMS))
    assert report.unused == ((frequencies, "copy of the prompt encoder's frequencies"),)
    assert len(report.used) == len(WEIGHTS)


def test_every_key_is_reported_and_mistakes_are_named():
    _, _, report = from_published({**WEIGHTS, "extra.weight": np.zeros(1)})
    assert report.unused == (("extra.weight", "SAM has no parameter of this name"),)
    assert {name for name, _ in report.used} == set(WEIGHTS)
    name = "mask_decoder.iou_prediction_head.layers.1.bias"
    with pytest.raises(
        ValueError, match=f"1 of {len(WEIGHTS)} .* are missing, the first is {name}"
    ):
        from_published({k: v for k, v in WEIGHTS.items() if k != name})
    name = "image_encoder.blocks.1.norm1.weight"
    with pytest.raises(ValueError, match=rf"{name} has shape \(5,\), .*the model \(16,\)"):
        from_published({**WEIGHTS, name: np.zeros(5)})
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is missing; the first .*fc"):
        from_published({"fc": np.zeros(2)})
    with pytest.raises(ValueError, match=r"pos_embed has shape \(4,\), expected 4 axes"):
        from_published({**WEIGHTS, "image_encoder.pos_embed": np.zeros(4)})


def test_single_points_are_padded_with_no_point():
    points, labels = sam.single_points(jnp.array([[3.0, 4.0]]))
    np.testing.assert_array_equal(points, [[[3, 4], [0, 0]]])
    np.testing.assert_array_equal(labels, [[1, NO_POINT]])


def test_prompts_do_not_see_each_other():
    points = jnp.array([[3.0, 4.0], [40.0, 20.0], [9.0, 60.0]])
    together, _ = apply("decode", GOLDEN["embedding"][0], *sam.single_points(points))
    alone, _ = apply("decode", GOLDEN["embedding"][0], *sam.single_points(points[1:2]))
    close(together[1:2], np.asarray(alone), 1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1


def product_flops(jaxpr):
    """Operations of all products in a jaxpr and those inside it, a multiply-add is two."""
    total = 0
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                total += product_flops(value.jaxpr)
        shapes = [variable.aval.shape for variable in eqn.invars]
        result = int(np.prod(eqn.outvars[0].aval.shape))
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            total += 2 * result * int(np.prod([shapes[0][axis] for axis in contracted]))
        elif eqn.primitive.name == "conv_general_dilated":
            total += 2 * result * int(np.prod(shapes[1][:3]))
    return total


def test_operations_of_the_benchmark_are_those_of_the_model():
    """The published ViT-B, but for its loop over heads: all products are counted, none computed."""
    sizes = dataclasses.replace(sam.SIZES["vit_b"], image_size=512)
    params, model = sam.parameter_shapes(sizes), sam.Sam(sizes)

    def count(method, *shapes):
        def call(params, *arguments):
            return model.apply({"params": params}, *arguments, method=method)

        arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        return product_flops(jax.make_jaxpr(call)(params, *arrays).jaxpr)

    embedding = ((32, 32, 256), jnp.float32)
    prompts = ((5, 2, 2), jnp.float32), ((5, 2), jnp.int32)
    assert count("encode", ((1, 512, 512, 3), jnp.float32)) == encoder_flops(sizes)
    assert count("decode", embedding, *prompts) == decoder_flops(sizes, [5])
    assert encoder_flops(sam.SIZES["vit_h"]) == pytest.approx(5.96e12, rel=1e-3)
