"""Finding the files of a vocabulary: a local directory first, then the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path


def find(name_or_path: str | Path, choices: Sequence[tuple[str, ...]]) -> tuple[Path, ...]:
    """Return the paths of the first complete set of files.

    Args:
        name_or_path: a directory, or the name of a model on the hub.
        choices: sets of file names, the preferred one first.

    Returns:
        One path for each name of the set that was found.

    Raises:
        FileNotFoundError: no set is complete; the message says what was looked for and where.

    Example:
        >>> find("no/such/vocabulary/here", [("vocab.json", "merges.txt")])
        Traceback (most recent call last):
        ...
        FileNotFoundError: 'no/such/vocabulary/here' is no directory and no name on the hub ...
    """
    wanted = " or ".join("+".join(names) for names in choices)
    directory = Path(name_or_path)
    if directory.is_dir():
        for names in choices:
            paths = tuple(directory / name for name in names)
            if all(path.is_file() for path in paths):
                return paths
        raise FileNotFoundError(f"{str(directory)!r} holds no {wanted}; put the files there")
    name = str(name_or_path)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name or not name:
        raise FileNotFoundError(
            f"{name!r} is no directory and no name on the hub ('model' or 'owner/model'); "
            f"give a directory that holds {wanted}"
        )
    return _from_hub(name, choices[0], wanted)


def _from_hub(name: str, names: tuple[str, ...], wanted: str) -> tuple[Path, ...]:
    """Return the files of a model on the hub, out of its cache when they are there."""
    from huggingface_hub import constants, hf_hub_download

    try:
        return tuple(Path(hf_hub_download(name, file)) for file in names)
    except (OSError, ValueError) as error:  # no network, no such model, no such file, bad name
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{name!r} is no directory, and the hub ({constants.ENDPOINT}, cache "
            f"{constants.HF_HUB_CACHE}) gave no {'+'.join(names)} [{reason}]; download {wanted} "
            "by hand into a directory and give that directory"
        ) from error
