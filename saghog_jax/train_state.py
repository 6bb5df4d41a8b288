"""What a training run carries from step to step."""

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """`step` counts finished updates; the random key of an update is folded from it."""

    step: jax.Array
    params: dict
    opt_state: tuple
