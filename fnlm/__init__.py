"""Language models as pure functions over explicit parameter trees, on PyTorch through `torch.func`.

Public modules: `bert`, `gpt`, `gpt2` and `transfo_xl` (the families), `checkpoints`, `generate`,
`heads`, `layers`, `params`, `random`, `tasks`, `tokenize`, `train`.
"""

__version__ = "0.1.0"
