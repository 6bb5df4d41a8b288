"""From page images to batches of patches.

Modules here import neither jax nor other parts of saghog_jax at module level, so that worker
processes stay small.
"""
