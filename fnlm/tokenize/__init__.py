"""Tokenizers, one module a family, over shared byte-pair encoding; nothing here imports torch."""

from fnlm.tokenize._padding import pad

__all__ = ["pad"]
