"""Tokenizers, one module a family, over shared byte-pair encoding; nothing here imports torch."""

from fnlm import _former

_explain = _former.explain_names(__name__)
