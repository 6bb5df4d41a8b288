"""Nested mappings as flat ones, whose names join those of the levels with dots, and back.

Not by flax, which loads jax.
"""

from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; empty mappings are left out.

    Args:
      before: put before each name.
    """
    fields: dict[str, Any] = {}
    for name, value in nested.items():
        fields |= (
            flat(value, f"{before}{name}.")
            if isinstance(value, Mapping)
            else {before + name: value}
        )
    return fields


def unflat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        *sections, last = name.split(".")
        level = nested
        for section in sections:
            level = level.setdefault(section, {})
        level[last] = value
    return nested
