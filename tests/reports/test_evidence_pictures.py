"""Pictures of the evidence of a match."""

import numpy as np
import pytest
from report_helpers import data_of, evidence_of, evidence_of_page

from saghog_jax.reports.evidence import _coloured, _density, _levels, pictures
from saghog_jax.retrieval.embeddings import load_embeddings


def test_evidence_becomes_pictures(proven):
    data = data_of(proven)
    assert list(data["evidence"]) == ["p2"]
    sheet = data["sheets"][2]
    first, second = (data["evidence"]["p2"][hit[0]] for hit in sheet["hits"][:2])
    assert [pair[0] for pair in first["pairs"]] == [0.9, 0.5]
    assert [patch[:2] for patch in first["pairs"][0][1:]] == [[10, 10], [30, 20]]
    assert first["sides"] == [8, 8]
    assert second["pairs"] == []
    density, at = _density(evidence_of_page(), (40, 60))
    assert density.shape == (160, 240)
    assert at.tolist() == [density[y, x] for y, x in ((40, 40), (80, 120), (120, 200))]
    assert density[40, 40] < 0 < density[80, 120] < density[120, 200]
    np.testing.assert_allclose(density.sum(), 0.4, atol=1e-2)
    colours = _coloured(np.array([[-1.0, 0.0, 2.0]]), 1.0)
    assert colours[0].tolist() == [[20, 110, 220], [0, 0, 0], [230, 97, 1]]


PARCHMENT, WHITE, FADED = (205, 180, 140), (255, 255, 255), (150, 140, 120)


@pytest.mark.parametrize(
    ("paper", "ink"), [(PARCHMENT, (95, 65, 40)), (WHITE, (0, 0, 0)), (FADED, (120, 100, 80))]
)
def test_paper_becomes_white_and_ink_black_under_the_colours(paper, ink):
    rng = np.random.default_rng(0)
    image = np.full((60, 90, 3), paper, np.uint8)
    image[::5] = ink
    # What is no page, and is not looked at, far from all patches.
    image[:, 60:] = 0
    image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    place = np.array([[10, 10], [30, 20], [40, 45]])
    brightness, contrast = _levels(image, place, 16)

    def shown(colour):
        grey = np.dot(colour, [0.2126, 0.7152, 0.0722]) / 255
        return np.clip((min(1, brightness * grey) - 0.5) * contrast + 0.5, 0, 1)

    assert shown(paper) > 0.98
    assert shown(ink) < 0.1
    # Nothing to tell apart: the picture stays as it is.
    assert _levels(np.full((60, 90, 3), 200, np.uint8), place, 16) == (1, 1)


def test_evidence_of_pages_whose_images_are_gone_is_left_out(proven, tmp_path):
    e = load_embeddings(tmp_path / "e")
    evidence = {(2, 3): evidence_of(e, 2, 3), (4, 5): evidence_of(e, 4, 5)}
    e.image(5).unlink()
    assert list(pictures(e, e, evidence, 10**6)) == [(2, 3)]
