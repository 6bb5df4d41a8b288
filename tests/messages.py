"""Messages of mistakes: one line each."""

import pytest

from saghog_jax.input_pipeline.errors import UserError


def message_of(function, *args, **changes) -> str:
    """What the user is told by a call that must be refused, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*args, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message
