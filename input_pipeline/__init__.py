"""Page images to batches of patches. Imports neither jax nor saghog_jax at module level."""
