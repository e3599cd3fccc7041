"""Tokenizers, one module a family, over shared byte-pair encoding; nothing here imports torch."""
