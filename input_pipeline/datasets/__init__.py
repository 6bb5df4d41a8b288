"""Collections of pages: the built-in corpus, and public collections by name (`catalog`)."""
