"""Compact descriptors: the projection against plain formulas, its file, and fragments of pages."""

from dataclasses import replace

import numpy as np
import pytest

from saghog_jax.configs import embed
from saghog_jax.embedding import compact
from saghog_jax.embedding.recipe import PageRecipe, recipe_parts
from saghog_jax.embedding.run_recipe import page_rule
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import UserError

RECIPE = PageRecipe(
    parts=recipe_parts("cls", 1.0, {"patch": 0.25, "keypoint": 0.25}),
    rule=replace(page_rule(), detect_scale=1.0),
    scales=(1.0, 0.5),
    compact=4,
)
NAMES = [part.descriptor for part in RECIPE.parts]
DIGESTS = dict.fromkeys(NAMES, "0")


def sums(pages, seed=0):
    """Pooled descriptors [pages, 6] of three parts at two scales."""
    rng = np.random.default_rng(seed)
    spread = np.array([4, 3, 2, 1, 0.5, 0.1])
    draws = rng.standard_normal((3, 2, pages, 6)) * spread + 1
    return [list(part) for part in draws.astype(np.float32)]


def fitted(components=4, shrinkage=2.0):
    rows = dict(zip(NAMES, RECIPE.part_rows(sums(50)), strict=True))
    return compact.fit(rows, DIGESTS, components, shrinkage)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_parts_are_projected_by_the_stated_formula():
    projection, pages = fitted(), sums(7, seed=1)
    descriptors = projection.join(RECIPE, pages)
    assert descriptors.shape == (7, 12)
    assert descriptors.dtype == np.float32
    columns = []
    for part, training, scales in zip(RECIPE.parts, sums(50), pages, strict=True):
        keypoint = part.descriptor == "sift_keypoint"
        # Signed powers, unit vectors by scale, then one unit vector. In one pass the keypoints of
        # all scales have the same SIFT: only the first scale counts.
        taken = slice(0, 1 if keypoint else 2)
        x, y = (
            unit(
                np.concatenate(
                    [unit(np.sign(s) * np.abs(s) ** part.power) for s in group[taken]], axis=1
                ).astype(np.float64)
            )
            for group in (training, scales)
        )
        mean = x.mean(0)
        values, vectors = np.linalg.eigh(np.cov(x.T))
        values, vectors = values[::-1][:4], vectors[:, ::-1][:, :4]
        z = unit((y - mean) @ vectors / np.sqrt(values + 2.0 * values.mean()))
        columns.append(part.weight**0.5 * z)
    expected = np.concatenate(columns, axis=1)
    # Eigenvectors have no sign; components are stored as float16.
    np.testing.assert_allclose(descriptors @ descriptors.T, expected @ expected.T, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-6)


def scaled(factor):
    """Three pages whose SIFT at found sizes has sums of the length `factor`."""
    pages = sums(3, seed=1)
    pages[2][0] *= factor / np.linalg.norm(pages[2][0], axis=1, keepdims=True)
    return pages


@pytest.mark.parametrize(
    ("amount", "share"), [(0, 0), (39, 0), (40, 0), (40 * 2**0.5, 0.5), (80, 1), (500, 1)]
)
def test_weights_follow_the_amount_of_writing(amount, share):
    recipe = replace(RECIPE, full={"patch": 0.1, "keypoint": 0.7})
    pages = scaled(amount)
    expected = (1 - share) * np.array([0.5, 0.25, 0.25]) + share * np.array([0.2, 0.1, 0.7])
    np.testing.assert_allclose(recipe.weights_of(pages), np.tile(expected, (3, 1)), atol=1e-6)
    descriptors = fitted().join(recipe, pages)
    parts = np.split(descriptors, 3, axis=1)
    if amount:
        found = [np.linalg.norm(part, axis=1) ** 2 for part in parts]
        np.testing.assert_allclose(np.transpose(found), np.tile(expected, (3, 1)), atol=1e-5)
    # Without weights of full pages all pages have the same.
    assert (RECIPE.weights_of(pages) == [0.5, 0.25, 0.25]).all()


def test_weights_of_full_pages_are_kept_with_the_recipe():
    recipe = replace(RECIPE, full={"patch": 0.1, "keypoint": 0.7})
    assert PageRecipe.from_json(recipe.to_json()) == recipe
    assert "full" not in RECIPE.to_json()
    assert "for pages with much writing 0.1 (patch) and 0.7 (keypoint)" in recipe.describe()
    with pytest.raises(UserError, match="add up to less than 1"):
        replace(RECIPE, full={"patch": 0.5, "keypoint": 0.5})
    with pytest.raises(UserError, match="but the parts are SIFT of"):
        replace(RECIPE, full={"keypoint": 0.5})


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, True),
        ({"sift.patch": 0.25, "sift.keypoint": 0.25}, True),
        ({"sift.keypoint": 0.3}, False),
        ({"compact": 0}, False),
        ({"compact": 2}, True),
        ({"scales": (1.0,)}, False),
    ],
)
def test_given_weights_are_those_of_all_pages(fields, kept):
    recipe = replace(RECIPE, full={"patch": 0.1, "keypoint": 0.7})
    config = embed.get_config("plain")
    config.update_from_flattened_dict(fields)
    assert bool(recipe.with_config(config).full) == kept


def test_shrinkage_amplifies_weak_components_less():
    weak = [
        np.abs(fitted(shrinkage=s).join(RECIPE, sums(40, seed=1))[:, 3]).mean()
        for s in (0.0, 1.0, 10.0)
    ]
    assert weak[0] > 1.1 * weak[1] > 1.1**2 * weak[2]


def test_the_first_components():
    projection, pages = fitted(), sums(7, seed=1)
    few = projection.first(2)
    assert few.join(RECIPE, pages).shape == (7, 6)
    for name in NAMES:
        np.testing.assert_array_equal(
            few.parts[name].components, projection.parts[name].components[:2]
        )
    with pytest.raises(UserError, match=r"config\.compact=5: 4 components of cls were fitted"):
        projection.first(5)


def test_a_page_without_patches_in_one_part_is_compared_by_the_others():
    pages = sums(3)
    for scale in pages[0]:
        scale[1] = 0
    for part in pages:
        for scale in part:
            scale[2] = 0
    descriptors = fitted().join(RECIPE, pages)
    assert not descriptors[1, :4].any()
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), [1, 1, 0], atol=1e-6)


def test_pages_without_patches_do_not_count_in_the_fit():
    rows = dict(zip(NAMES, RECIPE.part_rows(sums(50)), strict=True))
    more = {name: np.concatenate([np.zeros_like(x[:5]), x]) for name, x in rows.items()}
    assert compact.fit(more, DIGESTS, 4, 1.0).digest == compact.fit(rows, DIGESTS, 4, 1.0).digest


def test_few_rows_give_few_components():
    rows = {name: x[:3] for name, x in zip(NAMES, RECIPE.part_rows(sums(50)), strict=True)}
    assert len(compact.fit(rows, DIGESTS, 4, 1.0).parts["cls"].variances) == 2


def test_a_file_gives_the_same_projection(tmp_path):
    projection = fitted()
    compact.save(projection, tmp_path / "p.npz")
    again = compact.load(tmp_path / "p.npz")
    assert again.digest == projection.digest
    assert again.digests == DIGESTS
    pages = sums(7, seed=1)
    np.testing.assert_array_equal(again.join(RECIPE, pages), projection.join(RECIPE, pages))
    assert fitted(shrinkage=1.0).digest != projection.digest


def test_files_that_are_no_projection(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(UserError, match=r"does not exist: finetuning writes it with"):
        compact.load(path)
    path.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="is not a projection of page descriptors"):
        compact.load(path)


def test_long_descriptors_have_no_projection(tmp_path):
    assert compact.of_run(tmp_path, "last", replace(RECIPE, compact=0), []) is None


def cut(x, y):
    """Patches at these places; the first number of a patch is its number."""
    n = len(x)
    numbered = np.zeros((n, 32, 32, 3), np.uint8)
    numbered[:, 0, 0, 0] = np.arange(n)
    place = [np.array(axis, np.int32) for axis in (x, y)]
    return Cut(numbered, np.zeros((n, 128), np.uint8), *place, np.zeros((n, 128), np.uint8))


def test_fragments_are_the_patches_in_boxes():
    """Boxes of 448 x 224 pixels at the first scale, which hold at least 20 patches there."""
    first = cut([10] * 20 + [460] * 19 + [900] * 25, [10] * 20 + [10] * 19 + [230] * 25)
    second = cut([5, 224, 450], [5, 5, 115])
    pieces = list(compact.fragments([first, second], [1.0, 0.5], 32, 6))
    assert [len(piece[0].x) for piece in pieces] == [20, 25]
    assert [piece[1].patches[:, 0, 0, 0].tolist() for piece in pieces] == [[0], [2]]
    assert len(list(compact.fragments([first, second], [1.0, 0.5], 32, 1))) == 1
    assert not list(compact.fragments([second, first], [1.0, 0.5], 32, 6))
