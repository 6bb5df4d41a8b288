"""Inner products of rows with all rows, by jax: on the accelerator, where there is one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int


def products_on_device(
    x: Float32[np.ndarray, "p d"],
) -> Callable[[Int[np.ndarray, " q"]], Float32[np.ndarray, "q p"]]:
    """A function that returns the inner products of some rows of x with all rows.

    `x` is stored on the device.
    """
    device_x = jnp.array(x)
    # A writable copy.
    return lambda rows: np.array(_products(device_x, rows))


@jax.jit
def _products(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.matmul(x[rows], x.T, precision="highest")
