"""Patch stores: format, building, reading."""
