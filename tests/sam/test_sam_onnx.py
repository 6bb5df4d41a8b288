"""SAM in ONNX files: parity with our own by both conventions of inputs, and mistakes named."""

import sys

import numpy as np
import pytest
from places import TESTS

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.sam.backend import FlaxSegmenter
from saghog_jax.sam.onnx_backend import OnnxSegmenter
from saghog_jax.sam.weights import from_published

GOLDEN = TESTS / "golden"
ONNX = np.load(GOLDEN / "sam_onnx.npz")
TINY = np.load(GOLDEN / "sam_tiny.npz")
FRAME = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
POINTS = np.array([[3.0, 4.0], [40.0, 20.0], [9.0, 60.0]], np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for name in ONNX.files:
        (folder / f"{name}.onnx").write_bytes(ONNX[name].tobytes())
    return lambda name: str(folder / f"{name}.onnx")


@pytest.fixture(scope="module")
def ours():
    weights = {k[2:]: TINY[k] for k in TINY.files if k.startswith("w/")}
    params, sizes, _ = from_published(weights)
    segmenter = FlaxSegmenter(params, sizes, np.float32)
    return segmenter.decode(segmenter.encode(FRAME), POINTS)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("official", "official"), ("raw", "official"), ("hugging_face", "hugging_face")],
)
def test_same_masks_as_ours(files, ours, encoder, decoder):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    segmenter = OnnxSegmenter(files(f"{encoder}_encoder"), files(f"{decoder}_decoder"))
    # [h, w, 3] does not tell the side of the square.
    assert segmenter.image_size == (1024 if encoder == "raw" else 64)
    logits, iou = segmenter.decode(segmenter.encode(FRAME), POINTS)
    assert logits.shape == (3, 3, 16, 16)
    for found, wanted in zip((logits, iou), ours, strict=True):
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def test_mistakes_are_named(files, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    encoder, decoder = files("official_encoder"), files("official_decoder")
    with pytest.raises(UserError, match=r"a decoder of SAM has the inputs .* got \['images'\]"):
        OnnxSegmenter(encoder, encoder)
    with pytest.raises(UserError, match=r"an encoder of SAM has one input, .* 'point_coords'"):
        OnnxSegmenter(decoder, decoder)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="bad.onnx is no ONNX model that can be run"):
        OnnxSegmenter(str(tmp_path / "bad.onnx"), decoder)


def test_without_onnxruntime_the_extra_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'saghog_jax\[onnx\]'"):
        OnnxSegmenter(files("official_encoder"), files("official_decoder"))
