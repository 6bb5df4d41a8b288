"""Collections of pages: the built-in corpus and one TFDS builder a public data set."""
