"""The device of a run, by name."""

from functools import lru_cache

import torch

__all__ = ["choose_device"]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of a name; "auto" is CUDA where there is a GPU, else the CPU.

    Args:
        name: "auto", or what torch knows, such as "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: tensors cannot be made on that device, as on "cuda" without a GPU.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    return _device(str(name))


@lru_cache
def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device={name} is none here ({reason}): use device=cpu, or device=auto for CUDA where "
            "there is a GPU"
        ) from error
