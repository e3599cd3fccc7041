"""Tokenizers, one module a family; nothing here imports torch."""
