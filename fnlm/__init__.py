"""Language models as pure functions over explicit parameter trees, on PyTorch through `torch.func`.

Public modules: `gpt2` (a family), `generate`, `heads`, `layers`, `params`, `random`, `tokenize`,
`train`.
"""

__version__ = "0.1.0"
