"""The type of the arrays that numeric functions accept."""

import numpy as np
from jaxtyping import Array

# As those of jax.numpy, the functions accept numpy arrays too.
AnyArray = Array | np.ndarray
