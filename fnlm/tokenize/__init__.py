"""Tokenizers, one module a family, over shared byte-pair encoding; nothing here imports torch."""

from fnlm import _former
from fnlm.tokenize._padding import pad

__all__ = ["pad"]

_explain = _former.explain_names(__name__)
