"""Finds pages written by the same hand: SAGHOG (ICDAR 2024) in JAX and Flax.

The public functions are loaded when they are first used; importing the package loads no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saghog_jax.api import evaluate, explain, nearest
    from saghog_jax.embedding.encoder import load_encoder
    from saghog_jax.retrieval.embeddings import load_embeddings
    from saghog_jax.stages import run_stage

__all__ = ["evaluate", "explain", "load_embeddings", "load_encoder", "nearest", "run_stage"]

_PLACES = {
    "evaluate": "saghog_jax.api",
    "explain": "saghog_jax.api",
    "load_embeddings": "saghog_jax.retrieval.embeddings",
    "load_encoder": "saghog_jax.embedding.encoder",
    "nearest": "saghog_jax.api",
    "run_stage": "saghog_jax.stages",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
