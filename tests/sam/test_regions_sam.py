"""The backend `sam` by both engines, from files of tiny weights to masks, stores and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from places import TESTS
from safetensors.numpy import save_file
from store_helpers import draw_page, write_pages

from saghog_jax import prepare
from saghog_jax.configs import prepare as prepare_config
from saghog_jax.configs.regions import regions_config, sam_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.regions import sam_rules
from saghog_jax.input_pipeline.regions.backends import make_backend
from saghog_jax.input_pipeline.regions.page_mask import read_mask
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.sam import backend, mask_generator, register_backend
from saghog_jax.sam.mask_generator import Masks

GOLDEN = TESTS / "golden"
register_backend()
TINY = np.load(GOLDEN / "sam_tiny.npz")
PAGE = draw_page(0)
# Thresholds that let the masks of random weights pass.
OPEN = {
    "sam.points_per_side": 3,
    "sam.published_code.min_iou": -100.0,
    "sam.published_code.min_stability": 0.0,
    "sam.published_code.max_overlap": 0.9,
    "sam.published_code.min_share": 0.0,
    "sam.published_code.border": 3,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sam_tiny.safetensors"
    save_file({k[2:]: TINY[k].astype(np.float32) for k in TINY.files if k[:2] == "w/"}, path)
    return path


@pytest.fixture
def regions(weights, tmp_path):
    section = regions_config("sam")
    section.root = str(tmp_path / "regions")
    section.sam.weights = str(weights)
    section.update_from_flattened_dict(OPEN)
    return section


def test_prepare_cuts_within_the_masks_and_goes_on(regions, tmp_path, monkeypatch, capsys):
    config = prepare_config.get_config("only=pretrain")
    config.data.pages, config.data.split = str(write_pages(tmp_path / "pages", 3)), ""
    config.regions = regions
    store = config.stores.pretrain
    store.root, store.workers, store.max_patches_per_page = str(tmp_path / "stores"), 1, 30
    assert prepare.run(config, tmp_path).skipped == ()
    said = capsys.readouterr().out
    assert f"regions: {sum(k[:2] == 'w/' for k in TINY.files)} arrays of" in said
    assert "3 pages ok" in said
    (folder,) = Path(regions.root).glob("sam-*")
    masks = {path.name.split("-")[0]: read_mask(path) for path in folder.glob("*.png")}
    assert set(masks) == {"p00", "p01", "p02"}
    (cut,) = Path(store.root).glob("pretrain-*")
    index = Store.open(cut).index
    assert len(index["x"]) > 20
    for page, x, y in zip(index["page"], index["x"], index["y"], strict=True):
        assert masks[f"p{page:02d}"][y, x]
    # Only the page whose mask is lost is looked at again, and its mask is the same.
    lost = next(folder.glob("p01-*.json"))
    info = lost.read_text()
    lost.unlink()
    (cut / "store.json").unlink()
    looked = []
    find = backend.find
    monkeypatch.setattr(backend, "find", lambda *a: looked.append(1) or find(*a))
    prepare.run(config, tmp_path)
    assert looked == [1]
    assert lost.read_text() == info
    info = json.loads(info)
    assert info["backend"] == "sam"
    assert info["parameters"]["rules"] == "published_code"
    assert info["parameters"]["border"] == 3
    assert len(info["weights"]["weights"]) == 64
    taken = [mask for mask in info["meta"]["masks"] if mask["verdict"].startswith("selected")]
    assert len(taken) == len(info["scores"]) > 0
    # With everything there the weights are not even read.
    capsys.readouterr()
    prepare.run(config, tmp_path)
    assert "arrays of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("points_per_batch", 4, True),
        ("paper.min_edges", 0.3, True),
        ("points_per_side", 4, False),
        ("input", "page", False),
        ("rules", "paper", False),
        ("max_masks", 9, False),
        ("published_code.min_share", 0.2, False),
        ("precision", "mixed", False),
    ],
)
def test_what_identifies_a_mask(regions, field, value, same):
    before = make_backend(regions).identity
    regions.sam.update_from_flattened_dict({field: value})
    assert (make_backend(regions).identity == before) == same


def test_other_weights_are_other_masks(regions, tmp_path):
    before = make_backend(regions).identity
    regions.sam.weights = str(tmp_path / "other.safetensors")
    Path(regions.sam.weights).write_bytes(b"other")
    assert make_backend(regions).identity != before


class Planted:
    """A generator that gives these logits and remembers what it was shown."""

    def __init__(self, logits, iou):
        self.logits, self.iou, self.seen = logits, iou, None

    def __call__(self, image):
        self.seen = image
        frame = mask_generator.shrink(image, 64).shape[:2]
        masks = [mask_generator.to_page(one, frame, frame) for one in self.logits]
        masks = np.array(masks, bool).reshape(-1, *frame)
        return Masks(masks, self.logits, self.iou, np.ones(len(masks)), len(masks))


def planted(*boxes):
    """Masks that are boxes of the 16 x 16 logits: rows, then columns."""
    logits = np.full((len(boxes), 16, 16), -9, np.float32)
    for one, (top, bottom, left, right) in zip(logits, boxes, strict=True):
        one[top:bottom, left:right] = 9
    return Planted(logits, np.linspace(0.99, 0.9, len(boxes)))


def test_masks_are_merged_enlarged_and_lose_their_border():
    """A page of 160 x 200 is 51 x 64 in the frame, which is 13 of 16 rows of the logits."""
    section = sam_config()
    section.published_code.border = 12
    generator = planted((0, 13, 0, 5), (0, 13, 10, 15), (2, 3, 6, 7))
    result = backend.find(PAGE, generator, section)
    assert result.mask.shape == (160, 200)
    assert result.mask[80].nonzero()[0].tolist() == [*range(12, 62), *range(125, 187)]
    assert result.mask[:, 40].nonzero()[0].tolist() == [*range(12, 148)]
    assert result.scores == pytest.approx((0.99, 0.945))
    assert [mask["verdict"] for mask in result.meta["masks"]][:2] == ["selected", "selected"]
    assert result.meta["masks"][2]["verdict"].startswith("dropped: area 0.0")


def test_published_border_leaves_nothing_of_small_pages():
    result = backend.find(PAGE, planted((0, 13, 0, 8)), sam_config())
    assert not result.mask.any()
    assert len(result.scores) == 1


def test_edges_or_the_page_are_shown():
    section = sam_config()
    generator = planted((0, 13, 0, 8))
    backend.find(PAGE, generator, section)
    edges = sam_rules.edges(PAGE)
    assert (generator.seen == edges[..., None]).all()
    assert edges.any()
    section.input = "page"
    backend.find(PAGE, generator, section)
    np.testing.assert_array_equal(generator.seen, PAGE)


@pytest.mark.parametrize("rules", sam_rules.RULES)
def test_no_mask_is_an_empty_page(rules):
    section = sam_config()
    section.rules = rules
    result = backend.find(PAGE, planted(), section)
    assert not result.mask.any()
    assert result.scores == ()
    assert result.meta == {"masks_found": 0, "masks": []}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sam.weights", "", r"regions.sam.weights is empty: give the file, --config.regions.sam"),
        ("sam.weights", "none.pth", "regions.sam.weights: there is no file none.pth"),
        ("sam.points_per_side", 0, "points_per_side=0 and points_per_batch=16 must be at least 1"),
        ("sam.rules", "papr", "unknown rules of SAM 'papr'"),
        ("sam.precision", "half", "unknown config.precision 'half'"),
        ("sam.engine", "onnx", "regions.sam.encoder is empty"),
        ("sam.engine", "jax", "unknown regions.sam.engine 'jax', known: flax, onnx"),
    ],
)
def test_mistakes_are_named_before_a_page_is_looked_at(regions, field, value, message):
    regions.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        make_backend(regions)


def test_weights_of_something_else(regions, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"fc.weight": np.zeros((2, 2), np.float32)}, path)
    regions.sam.weights = str(path)
    message = r"other.safetensors: not the weights of a SAM: .*fc.weight"
    with pytest.raises(UserError, match=message):
        make_backend(regions).find(PAGE, None)
    path.write_bytes(b"no weights")
    message = r"^[^:]*other.safetensors is not a readable safetensors file"
    with pytest.raises(UserError, match=message):
        make_backend(regions).find(PAGE, None)


def test_published_files_of_pytorch(regions, weights, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra torch is not installed")
    expected = make_backend(regions).find(PAGE, None)
    path = tmp_path / "sam_tiny.pth"
    torch.save({k[2:]: torch.tensor(TINY[k]) for k in TINY.files if k[:2] == "w/"}, path)
    regions.sam.weights = str(path)
    found = make_backend(regions).find(PAGE, None)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert found.meta == expected.meta


def test_onnx_files_give_the_same_mask(regions, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    expected = make_backend(regions).find(PAGE, None)
    onnx = np.load(GOLDEN / "sam_onnx.npz")
    for part in ("encoder", "decoder"):
        path = tmp_path / f"{part}.onnx"
        path.write_bytes(onnx[f"official_{part}"].tobytes())
        regions.sam[part] = str(path)
    regions.sam.engine = "onnx"
    by_onnx = make_backend(regions)
    found = by_onnx.find(PAGE, None)
    # Names that masks on disk have.
    assert (by_onnx.identity["backend"], set(by_onnx.identity["weights"])) == (
        "sam_onnx", {"encoder", "decoder"}
    )  # fmt: skip
    assert (found.mask != expected.mask).mean() < 1e-3
    assert [mask["verdict"] for mask in found.meta["masks"]] == [
        mask["verdict"] for mask in expected.meta["masks"]
    ]
