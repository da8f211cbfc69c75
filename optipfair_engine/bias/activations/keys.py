"""Layer keys: which component of which layer an activation is of, as ``mlp_output_layer_3``."""

from __future__ import annotations


def layer_key(layer_type: str, layer: int) -> str:
    """``{layer_type}_layer_{layer}``."""
    return f"{layer_type}_layer_{layer}"


def split_key(key: str) -> tuple[str, int] | None:
    """(component, layer) of a key, or None if it isn't one."""
    component, separator, number = key.rpartition("_layer_")
    return (component, int(number)) if separator and number.isdecimal() else None
