"""The number type of the operands of matrix products; everything else is float32.

`mixed` rounds operands to bfloat16 and keeps float32 sums, parameters, normalisation and losses. It
is faster on accelerators and on CPUs with bfloat16 instructions.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import check_choice

PRECISIONS = ("auto", "float32", "mixed")
_CPU_FLAGS = ("avx512_bf16", "amx_bf16")


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with `auto` replaced by the faster precision of this machine.

    Raises:
      UserError: the precision is unknown.
    """
    check_choice("config.precision", config.precision, PRECISIONS)
    if config.precision == "auto":
        config = config.copy_and_resolve_references()
        config.precision = "mixed" if _mixed_is_faster() else "float32"
    return config


def resolve_name(precision: str) -> str:
    """A name of `PRECISIONS` with `auto` replaced by the faster precision of this machine."""
    return resolve(ConfigDict({"precision": precision})).precision


def operand_dtype(precision: str) -> DTypeLike:
    """The type of the operands of products at a resolved precision."""
    return {"float32": jnp.float32, "mixed": jnp.bfloat16}[precision]


def _mixed_is_faster() -> bool:
    if jax.default_backend() != "cpu":
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in _CPU_FLAGS)
