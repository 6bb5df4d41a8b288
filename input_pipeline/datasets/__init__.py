"""Collections of pages: the built-in corpus, and public ones by name (`catalog`)."""
