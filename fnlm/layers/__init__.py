"""The primitives that families are written with: pure functions of tensors.

They take any leading dimensions. Dimension letters: B batch, T new tokens, S cached tokens,
V vocabulary, D width, H heads, Dh width of a head (D = H Dh).
"""
