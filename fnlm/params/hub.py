"""Where a model's files are: a path, a model inside the package, or a name on the hub."""

from pathlib import Path

__all__ = ["BUNDLED", "locate"]

BUNDLED = Path(__file__).parent.parent / "models"


def locate(name_or_path: str | Path) -> tuple[Path, Path]:
    """Find the weights and the config.json of a model.

    Args:
        name_or_path: a directory, a .safetensors file, the name of a bundled model, or a hub name.
            Paths win.

    Returns:
        path of the .safetensors file, path of the config.json.

    Raises:
        FileNotFoundError: says what was looked for, where, and how to get it.
    """
    path = Path(name_or_path).expanduser()
    if (
        not path.exists()
        and (BUNDLED / path.name / "config.json").is_file()
        and path.name == str(path)
    ):
        path = BUNDLED / path
    if path.is_dir():
        weights = path / "model.safetensors"
    elif path.is_file():
        weights = path
    else:
        return _from_hub(str(name_or_path))
    config = weights.parent / "config.json"
    for file in (weights, config):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: a model is a model.safetensors beside its config.json"
            )
    return weights, config


def _from_hub(name: str) -> tuple[Path, Path]:
    """Fetch from the hub's cache, or from the network unless HF_HUB_OFFLINE is set."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = [
            huggingface_hub.hf_hub_download(name, f) for f in ("model.safetensors", "config.json")
        ]
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        bundled = ", ".join(sorted(p.name for p in BUNDLED.glob("*"))) or "none"
        raise FileNotFoundError(
            f"no file or directory {name!r}, no bundled model of that name (bundled: {bundled}), "
            f"and the hub gave no model.safetensors and config.json for it "
            f"({type(error).__name__}): check the name, or download both files into a directory "
            "and pass its path"
        ) from error
    return Path(files[0]), Path(files[1])
