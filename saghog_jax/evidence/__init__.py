"""Which patches of two pages make their similarity."""
