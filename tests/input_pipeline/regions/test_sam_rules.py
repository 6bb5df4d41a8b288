"""Selection of masks by the published code and by the paper: every rule on artificial masks."""

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from saghog_jax.configs.regions import sam_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.regions import sam_rules

H, W = 100, 90


def box(rows, columns):
    mask = np.zeros((H, W), bool)
    mask[rows, columns] = True
    return mask


def share(part):
    """A mask of this fraction of the page, in its middle rows."""
    mask = np.zeros(H * W, bool)
    start = int(H * W * (1 - part) / 2)
    mask[start : start + round(part * H * W)] = True
    return mask.reshape(H, W)


FRAME = ~box(slice(5, 95), slice(5, 85))


def code(*masks, **changes):
    rules = sam_config().published_code
    rules.update(changes)
    return sam_rules.by_published_code(np.array(masks).reshape(-1, H, W), rules)


def test_a_mask_of_two_thirds_is_taken_alone():
    assert code(share(0.3), share(0.7), share(0.2)).selected == (1,)
    assert code(share(0.66), share(0.6)).selected == (0, 1)
    assert code(share(0.66), share(0.6), alone_share=0.5).selected == (0,)


def test_the_largest_of_those_taken_alone_ends_the_search():
    choice = code(share(0.7), share(0.9))
    assert choice.selected == (1,)
    assert choice.verdicts == ("not examined", "selected alone")


def test_small_masks_are_dropped():
    choice = code(share(0.1), share(0.3))
    assert choice.selected == (1,)
    assert choice.verdicts[0] == "dropped: area 0.100 of the page"
    assert code(share(0.1)).selected == ()
    assert code(share(0.1), min_share=0.05).selected == (0,)
    assert code().selected == ()


@pytest.mark.parametrize(("second", "selected"), [(0.4, (0, 1)), (0.35, (0, 1)), (0.347, (0,))])
def test_two_are_merged_only_if_nearly_as_large(second, selected):
    """0.40 / 0.35 = 1.14, 0.40 / 0.347 = 1.153."""
    assert code(share(0.4), share(second)).selected == selected
    assert code(share(0.4), share(second), merge_high=1.2).selected == (0, 1)
    assert code(share(0.4), share(second), merge_low=1.2, merge_high=1.3).selected == (0,)


def test_a_third_is_never_merged():
    choice = code(share(0.3), share(0.31), share(0.32))
    assert choice.selected == (2, 1)
    assert choice.verdicts[0] == "dropped: only the two largest masks are candidates"


def test_the_inversion_changes_the_area_alone():
    """A frame of 20 % counts as the 80 % inside of it, and is selected without inversion."""
    assert FRAME.mean() == pytest.approx(0.2)
    choice = code(FRAME, share(0.3))
    assert choice.selected == (0,)
    assert choice.verdicts == ("selected alone", "dropped: a larger mask is selected alone")
    assert code(FRAME, share(0.3), inversion="none").selected == (1,)
    # Larger masks come first, by their own areas: here the search ends before the frame.
    assert code(FRAME, share(0.7)).selected == (1,)
    # A mask of the whole page counts with area zero.
    full = code(np.ones((H, W), bool))
    assert full.verdicts == ("dropped: area 0.000 of the page",)


def test_the_inversion_has_its_axes_swapped():
    """Rows of 80 pixels would have to hold more than 0.8 * 200."""
    high = ~np.pad(np.ones((190, 70), bool), 5)
    rules = sam_config().published_code
    assert sam_rules.by_published_code(high[None], rules).verdicts == ("selected",)
    square = ~np.pad(np.ones((90, 90), bool), 5)
    assert sam_rules.by_published_code(square[None], rules).verdicts == ("selected alone",)


def paper(shares, **changes):
    rules = sam_config().paper
    rules.update(changes)
    return sam_rules.by_paper(np.array(shares, np.float64), rules)


def test_paper_drops_masks_with_few_edges_and_merges_two():
    choice = paper([0.2, 0.09, 0.3, 0.1])
    assert choice.selected == (2, 0)
    assert choice.verdicts == (
        "selected", "dropped: 0.090 of the edges",
        "selected", "dropped: other masks hold more edges",
    )  # fmt: skip
    assert paper([0.2, 0.09, 0.3], min_edges=0.05, most_masks=3).selected == (2, 0, 1)
    assert paper([0.2, 0.3], most_masks=1).selected == (1,)
    assert paper([0.05]).selected == paper([]).selected == ()


def test_edge_fractions_at_any_size():
    edge_map = np.zeros((200, 160), np.uint8)
    edge_map[20:60, 40] = 255
    edge_map[100:160, 100] = 255
    upper, left, none = box(slice(0, 45), slice(None)), box(slice(None), slice(0, 40)), share(0)
    shares = sam_rules.edge_fractions(np.array([upper, left, none]), edge_map)
    np.testing.assert_allclose(shares, [0.4, 0.4, 0.0], atol=1e-6)
    assert sam_rules.edge_fractions(np.array([upper]), edge_map * 0).tolist() == [0.0]
    assert sam_rules.edge_fractions(np.zeros((0, H, W), bool), edge_map).shape == (0,)


def test_rules_are_chosen_by_name():
    """A mask without edges: the published code selects it by its area."""
    section = sam_config()
    edge_map = np.zeros((H, W), np.uint8)
    edge_map[:3] = 255
    masks = np.array([share(0.5), box(slice(0, 4), slice(None))])
    assert sam_rules.choose(masks, edge_map, section).selected == (0,)
    section.rules = "paper"
    assert sam_rules.choose(masks, edge_map, section).selected == (1,)


def test_border():
    mask = np.ones((6, 9), bool)
    inner = sam_rules.without_border(mask, 2)
    assert inner.sum() == 2 * 5
    assert inner[2:4, 2:7].all()
    assert sam_rules.without_border(mask, 0).all()
    assert not sam_rules.without_border(mask, 3).any()
    assert mask.all()


def test_edges_are_those_of_the_blurred_page():
    page = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    page[20:40, 10:30] = 0
    grey = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)
    expected = cv2.Canny(cv2.GaussianBlur(grey, (5, 5), 0), 150, 200)
    np.testing.assert_array_equal(sam_rules.edges(page), expected)
    assert (expected != cv2.Canny(grey, 150, 200)).any()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("rules", "unknown rules of SAM 'x', known: published_code, paper"),
        ("input", "unknown input of SAM 'x', known: edges, page"),
        (
            "published_code.inversion",
            "unknown published_code.inversion of SAM 'x', known: area, none",
        ),
    ],
)
def test_unknown_names(field, message):
    section = ConfigDict(sam_config())
    section.update_from_flattened_dict({field: "x"})
    with pytest.raises(UserError, match=message):
        sam_rules.check(section)
