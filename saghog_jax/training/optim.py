"""AdamW with warm-up, cosine decay, clipping, and a learning rate factor per parameter."""

import re
from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import path_aware_map
from ml_collections import ConfigDict


def learning_rate(
    step: jax.Array | np.ndarray | int,
    optim: ConfigDict,
    total_steps: int,
    xp: ModuleType = jnp,
) -> jax.Array | np.ndarray:
    """The learning rate of update `step`, counted from 0, as in the published code.

    Warm-up is linear and includes both ends: update `warmup_steps - 1` already has the peak rate,
    and the next update has it too, as the start of the cosine. The final rate is never reached.

    Args:
      step: any shape.
      optim: the `optim` section of a config: rates and `warmup_steps`.
      total_steps: updates of the whole run.
      xp: the array module; the result has its default float type (numpy: float64).
    """
    warmup, peak = optim.warmup_steps, optim.learning_rate
    step = xp.asarray(step, dtype=float)
    line = optim.start_learning_rate + (peak - optim.start_learning_rate) * step / max(
        warmup - 1, 1
    )
    angle = xp.pi * (step - warmup) / max(total_steps - warmup, 1)
    final = optim.final_learning_rate
    cosine = final + 0.5 * (peak - final) * (1.0 + xp.cos(angle))
    return xp.where(step < warmup, line, cosine)


def parameter_paths(params: dict) -> dict:
    """The tree of `params` with each leaf replaced by its path, such as `encoder/norm/scale`."""
    return path_aware_map(lambda path, _: "/".join(path), params)


def match_rules(params: dict, rules: Sequence[tuple[str, float]]) -> dict:
    """The value of the first matching rule for each parameter.

    Args:
      rules: (regular expression on the parameter path, value).

    Raises:
      ValueError: no rule matches a parameter.
    """

    def first(path: str) -> float:
        for pattern, value in rules:
            if re.search(pattern, path):
                return value
        raise ValueError(f"no rule matches parameter {path!r}; rules: {[p for p, _ in rules]}")

    return jax.tree.map(first, parameter_paths(params))


def make_optimizer(
    optim: ConfigDict,
    total_steps: int,
    rate_rules: Sequence[tuple[str, float]] = ((".*", 1.0),),
    decay_rules: Sequence[tuple[str, float]] | None = None,
) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam, decoupled weight decay, schedule, factors.

    Args:
      optim: the `optim` section of a config.
      total_steps: length of the schedule in updates.
      rate_rules: (regular expression on the parameter path, factor of the learning rate); 0 freezes
        a parameter.
      decay_rules: (regular expression, 1 for weight decay or 0). None applies weight decay to
        parameters of more than one axis, as in the published pretraining.
    """

    def decayed(params: dict) -> dict:
        if decay_rules is None:
            return jax.tree.map(lambda p: p.ndim > 1, params)
        return jax.tree.map(bool, match_rules(params, decay_rules))

    def scaled(updates: dict, state: optax.EmptyState, params: dict | None = None) -> tuple:
        del params
        factors = match_rules(updates, rate_rules)
        return jax.tree.map(lambda u, f: u * f if f != 1.0 else u, updates, factors), state

    chain = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(lambda step: learning_rate(step, optim, total_steps)),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scaled),
    )

    def update(updates: dict, state: tuple, params: dict | None = None) -> tuple:
        # Adam's bias correction raises a float to an integer count; strict promotion forbids it.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
