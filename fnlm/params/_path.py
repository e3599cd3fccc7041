"""The parts of a leaf's path, such as "blocks.0.norm_1.scale" or "heads.masked_lm.bias"."""

__all__ = ["head_of", "part_of"]


def part_of(path: str) -> str:
    """Return the top-level part that a path belongs to.

    >>> part_of("blocks.0.norm_1.scale")
    'blocks'
    """
    return path.split(".", 1)[0]


def head_of(path: str) -> str:
    """Return the task head that a path belongs to, "" for the body of the model.

    >>> head_of("heads.masked_lm.bias"), head_of("blocks.0.norm_1.scale")
    ('masked_lm', '')
    """
    part, _, rest = path.partition(".")
    return part_of(rest) if part == "heads" else ""
