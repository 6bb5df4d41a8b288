"""Nested mappings as flat ones, and back, as flax has them."""

import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from saghog_jax.input_pipeline.nested import flat, unflat

NESTED = [
    {},
    {"a": 1},
    {"a": {"b": 1, "c": {"d": [2, {"e": 3}], "f": None}}, "g": ()},
    {"z": {"y": 0}, "a": {"b": {}}, "m": {}},
]


@pytest.mark.parametrize("nested", NESTED)
def test_as_flax(nested):
    fields = flat(nested)
    assert list(fields.items()) == list(flatten_dict(nested, sep=".").items())
    assert unflat(fields) == unflatten_dict(fields, sep=".")
    assert flat(unflat(fields)) == fields


def test_names_may_have_a_beginning():
    assert flat({"a": {"b": 1}}, "x.") == {"x.a.b": 1}
