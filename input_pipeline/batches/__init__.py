"""From a patch store, or from pages, to batches."""
