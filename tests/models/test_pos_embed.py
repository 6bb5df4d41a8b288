"""Position embedding: stored tables, the definition by loops, errors."""

import math

import numpy as np
import pytest
from places import TESTS

from saghog_jax.models.pos_embed import sincos_2d

GOLDEN = np.load(TESTS / "golden" / "sincos.npz")


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("pos_")])
def test_equals_the_published_table(key):
    _, width, grid = key.split("_")
    ours = sincos_2d(int(width), tuple(int(n) for n in grid.split("x")))
    assert ours.dtype == np.float32
    # The published sines are taken in float32 of angles up to 15.
    np.testing.assert_allclose(ours, GOLDEN[key], atol=5e-6)
    with_cls = GOLDEN[key.replace("pos_", "poscls_")]
    assert not with_cls[0].any()
    np.testing.assert_array_equal(with_cls[1:], GOLDEN[key])


def test_equals_the_definition():
    rows, columns, width = 2, 4, 12
    table = sincos_2d(width, (rows, columns))
    for row in range(rows):
        for column in range(columns):
            expected = []
            for coordinate in (column * 16 / columns, row * 16 / rows):
                angles = [coordinate / 10000 ** (i / 3) for i in range(3)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * columns + column], expected, atol=1e-7)


def test_cached_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        sincos_2d(8, (2, 2))[0, 0] = 1


@pytest.mark.parametrize("width", [0, 6, -4])
def test_width_must_divide_by_four(width):
    with pytest.raises(ValueError, match=f"divisible by 4, not {width}"):
        sincos_2d(width, (2, 2))
