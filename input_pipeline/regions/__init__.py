"""Detects the handwriting on pages: backends, and the masks that they write to disk."""
