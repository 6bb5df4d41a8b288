"""Patch stores: format, building, reading; pages cut on the fly."""
