"""Which families are known, looked up by ``config.model_type``."""

from __future__ import annotations

from types import MappingProxyType

from optipfair_engine.architectures.base import Architecture
from optipfair_engine.architectures.decoder import DECODERS, TEXT_TOWERS_OF
from optipfair_engine.architectures.encoder import ENCODERS
from optipfair_engine.errors import UnsupportedModelError

ARCHITECTURES = MappingProxyType({entry.model_type: entry for entry in (*DECODERS, *ENCODERS)})

#: Every ``model_type`` that transformers' own code, and so no code of a model's folder, is needed for.
NATIVE_MODEL_TYPES = frozenset(ARCHITECTURES) | frozenset(TEXT_TOWERS_OF)


def known_architecture(model_type: str) -> Architecture | None:
    """The family's description (of a multimodal family, its text tower's), or None if there is none."""
    return ARCHITECTURES.get(TEXT_TOWERS_OF.get(model_type, model_type))


def find_architecture(model_type: str) -> Architecture:
    """The family's description.

    Raises:
        UnsupportedModelError: no entry; the text names the family and the known ones.
    """
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(
            f"model family {model_type!r} is not supported: config.model_type was looked for among {known}"
        ) from None
