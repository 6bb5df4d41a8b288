"""Batches of patches, from a patch store or cut from pages on the fly."""
