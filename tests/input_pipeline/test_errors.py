"""Messages about unknown choices."""

import pytest

from saghog_jax.input_pipeline.errors import UserError, check_choice, unknown_choice


def test_an_unknown_choice_is_named_with_the_known_ones():
    check_choice("config.source", "store", ("store", "crops"))
    message = "unknown config.source 'pages', known: store, crops"
    with pytest.raises(UserError) as error:
        check_choice("config.source", "pages", ("store", "crops"))
    assert str(error.value) == message
    assert unknown_choice("config.source", "pages", ("store", "crops")) == message


def test_the_most_similar_choice_is_suggested():
    message = unknown_choice("variant", "papr", ("cpu", "paper"), suggest=True)
    assert message == "unknown variant 'papr', known: cpu, paper; did you mean 'paper'?"
    assert unknown_choice("variant", "x", (), suggest=True) == "unknown variant 'x', known: none"
