"""`python -m saghog_jax` is `python -m saghog_jax.main`."""

from saghog_jax.main import run_main

run_main()
