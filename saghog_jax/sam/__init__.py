"""Segment Anything in JAX, and the region backend that uses it."""

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.regions import backends
from saghog_jax.input_pipeline.regions.backends import Backend


def register_backend() -> None:
    """Makes the region backend `sam` known; its module is imported when the backend is used."""
    backends.register("sam", _make)


def _make(section: ConfigDict) -> Backend:
    from saghog_jax.sam.backend import make

    return make(section)
