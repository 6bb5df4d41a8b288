"""Flax linen modules; thin, pure, jit-compiled by their callers."""
