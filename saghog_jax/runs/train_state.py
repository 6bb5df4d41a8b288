"""The state of a training run between two updates."""

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """Parameters, optimiser state and step.

    Attributes:
      step: number of finished updates; the random key of an update is derived from it.
      params: trained parameters.
      model_state: untrained collections of the model, such as the running means of batch
        normalisation; empty for a ViT.
      opt_state: state of the optimiser.
    """

    step: jax.Array
    params: dict
    model_state: dict
    opt_state: tuple

    @property
    def variables(self) -> dict:
        """The variables of the flax module: `params` and the other collections."""
        return {"params": self.params, **self.model_state}

    def with_variables(self, variables: dict) -> "TrainState":
        """The state with other parameters and collections."""
        params, rest = split_params(variables)
        return self.replace(params=params, model_state=rest)


def split_params(variables: dict) -> tuple[dict, dict]:
    """Splits variables into parameters and untrained collections."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return variables["params"], rest
