"""`python -m saghog_jax` is the command `saghog`."""

from saghog_jax.short_form import run

run()
