"""What a training run carries from step to step."""

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """`step` counts finished updates; the random key of an update is folded from it.

    `model_state` holds the collections of a model that are not trained, such as the running means
    of batch normalisation; it is empty for a ViT.
    """

    step: jax.Array
    params: dict
    model_state: dict
    opt_state: tuple

    @property
    def variables(self) -> dict:
        """What flax applies: `params` and the other collections."""
        return {"params": self.params, **self.model_state}

    def with_variables(self, variables: dict) -> "TrainState":
        """The same state with another model's parameters and collections."""
        params, rest = split_params(variables)
        return self.replace(params=params, model_state=rest)


def split_params(variables: dict) -> tuple[dict, dict]:
    """Parameters, and the collections of a model that are not trained."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], rest
