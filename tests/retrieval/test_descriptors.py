"""Which page descriptors may be compared, and what a refusal says."""

import copy

import pytest
from messages import message_of

from saghog_jax.configs.regions import regions_config
from saghog_jax.embedding.recipe import recipe_parts
from saghog_jax.embedding.run_recipe import default_recipe
from saghog_jax.retrieval.descriptors import check_alike, comparable

NAMES = ("new", "old")


def made_by(**changes):
    """Of the default recipe with changes, such as `rule_binarization`."""
    recipe = default_recipe("netrvlad", "binary").to_json()
    for name, value in changes.items():
        section, _, field = name.partition("_")
        if section == "rule":
            recipe["rule"][field] = value
        else:
            recipe[name] = value
    return comparable(recipe) | {"digests": {"netrvlad": "1" * 64}}


def parts(power, weights):
    return [vars(part) for part in recipe_parts("netrvlad", power, weights)]


def ink(**changes):
    section = regions_config("ink")
    section.update_from_flattened_dict(changes)
    return section.to_dict()


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({}, {"parts": parts(1.0, {})}, "power normalisation of netrvlad 0.4 and 1"),
        (
            {},
            {"parts": parts(0.4, {"patch": 0.25})},
            "descriptors netrvlad and netrvlad + sift_patch; weight in the similarity of netrvlad "
            "1 and 0.75",
        ),
        ({}, {"pooling": "max"}, "pooling sum and max"),
        ({}, {"scales": [1.0, 0.5]}, "scales [1.0] and [1.0, 0.5]"),
        ({}, {"input": "page"}, "input of the model (input) binary and page"),
        (
            {},
            {"rule_binarization": "isauvola"},
            "binarisation (store.binarization) otsu and isauvola",
        ),
        ({}, {"rule_min_ink": 0.3}, "store.min_ink 0.01 and 0.3"),
        ({}, {"regions": ink()}, "search for handwriting (regions.backend) none and ink"),
        (
            {"regions": ink(**{"ink.k": 0.2})},
            {"regions": ink()},
            "regions.ink.k 0.2 and 0.15",
        ),
    ],
)
def test_a_difference_is_named_in_words(ours, theirs, words, capsys):
    message = message_of(check_alike, made_by(**ours), made_by(**theirs), NAMES)
    assert message.startswith("new and old were embedded with different settings")
    assert message.endswith(
        f": {words}. Embed both alike, or --config.force=True compares them in spite of this"
    )
    check_alike(made_by(**ours), made_by(**theirs), NAMES, force=True)
    out = capsys.readouterr().out
    assert out.startswith("warning: new and old")
    assert words in out


def test_other_weights_are_named():
    other = made_by() | {"digests": {"netrvlad": "2" * 64}}
    message = message_of(check_alike, made_by(), other, NAMES)
    assert "weights of the model netrvlad 111111111111 and netrvlad 222222222222." in message


def test_what_changes_no_descriptor_is_free(capsys):
    """Places, workers, the number of patches and the resolution of a collection."""
    elsewhere = ink(root="elsewhere", workers=3, min_keypoints=5)
    masks = [regions_config("masks").to_dict() for _ in range(2)]
    masks[1]["masks"]["folder"] = "other masks"
    for ours, theirs in (
        ({"regions": ink()}, {"regions": elsewhere}),
        ({"regions": masks[0]}, {"regions": masks[1]}),
        ({}, {"rule_scale": 2.0, "rule_max_patches_per_page": 300}),
        ({}, {"max_pixels": 5, "precision": "mixed"}),
    ):
        check_alike(made_by(**ours), made_by(**theirs), NAMES)
    # Embeddings of older versions name no regions: then the whole page was read.
    old = copy.deepcopy(default_recipe("netrvlad", "binary").to_json())
    del old["regions"]
    check_alike(made_by(), comparable(old), NAMES)
    assert not capsys.readouterr().out
