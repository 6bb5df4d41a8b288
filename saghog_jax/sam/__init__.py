"""Segment Anything in JAX, and the region backends that use it."""
