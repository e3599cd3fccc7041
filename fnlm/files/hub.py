"""Locating the files of a model: a path, a bundled model, or a name on the hub.

A name is resolved once, by `locate`; the `Source` that it returns stands for the name in every
function that takes one, so that weights, configuration and vocabulary are those of one model.

Existing paths come first, the network last. A named file is the one that is read; of a directory,
the first of: the names of `WEIGHTS` in their order, the only other .safetensors file, TensorFlow's
latest checkpoint, OpenAI's ten arrays, the only .npz file.

This module knows no tensors, and huggingface_hub is imported only when a name is asked for; its
environment variables (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT ...) work as in
its own documentation.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from fnlm.files import _folder, _hub_client
from fnlm.files._text import printable_errors

__all__ = ["BUNDLED", "CONFIGS", "PUBLISHED", "WEIGHTS", "NameOrPath", "Source", "find", "locate"]

BUNDLED = Path(__file__).parent.parent / "weights"

# The names that pytorch-pretrained-bert published, and where on the hub their models are now.
PUBLISHED = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-large-cased": "google-bert/bert-large-cased",
    "bert-base-multilingual-uncased": "google-bert/bert-base-multilingual-uncased",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
    "bert-base-chinese": "google-bert/bert-base-chinese",
    "openai-gpt": "openai-community/openai-gpt",
    "gpt2": "openai-community/gpt2",
    "transfo-xl-wt103": "transfo-xl/transfo-xl-wt103",
}

# The names that weights have in a directory or on the hub, and those of a configuration; the
# preferred one first.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIGS = ("config.json", "bert_config.json", "hparams.json")

# Of OpenAI's first GPT, whose release of NumPy arrays states its configuration nowhere.
_ARRAYS = "params_shapes.json"
_LARGEST_NOTE = 1 << 16  # bytes of TensorFlow's file `checkpoint` that are looked at

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@\w[\w.-]*(/\w[\w.-]*)*)?", re.ASCII)
_EXPECTED = "weights (model.safetensors or pytorch_model.bin, whole or in shards)"
# Names of weights end so: a vocabulary is looked for beside them.
_WITH_VOCABULARY = (".safetensors", ".safetensors.index.json", ".npz", ".index")
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_Choices = Sequence[tuple[str, ...]]


class Source(NamedTuple):
    """The files of a model: what a name stands for, once it is resolved."""

    weights: Path  # a file of weights, an index of such files, or a TensorFlow .index
    config: Path  # beside the weights; a file that exists, unless `locate` was told not to mind
    repository: str = ""  # on the hub, with the commit: "owner/name@0123..."; "" on disk

    @property
    def directory(self) -> Path | None:
        """Where the other files of the model are; None if they are on the hub."""
        return None if self.repository else _folder.directory_of(self.weights)


NameOrPath = str | Path | Source  # what names a model


@printable_errors()
def locate(
    name_or_path: NameOrPath, *, configs: Sequence[str] = CONFIGS, config_required: bool = True
) -> Source:
    """Return the paths of the weights of a model and of the configuration beside them.

    Args:
        name_or_path: a directory; a file of weights, or the prefix of a TensorFlow checkpoint; the
            name of a model inside the package; one of the published names; or `owner/name` on the
            hub, with `@revision` or without. What exists on disk wins; then the cache of the hub.
            A `Source` is returned as it is.
        configs: the file names of a configuration, the preferred one first.
        config_required: if False, weights without a configuration are found as well.

    Raises:
        FileNotFoundError: names what was looked for, where, why it is missing, and how to get it.
        ValueError: several files could be meant; what is named is no regular file; or an index
            names files outside its directory.
        OSError: the disk is too small for the download.

    Example:
        >>> locate("tiny").config.name
        'config.json'
    """
    if isinstance(name_or_path, Source):
        source = name_or_path
    elif not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            "name_or_path must be a path or a name such as 'gpt2', got "
            f"{type(name_or_path).__name__}: what is loaded already needs no load"
        )
    elif path := _on_disk(name_or_path):
        source = _beside(_weights(path), configs)
    else:
        source = _on_hub(str(name_or_path), configs, config_required)
    if config_required and not source.config.is_file():
        raise FileNotFoundError(
            f"{source.config} is missing{_and_so(configs[1:])}: a model is its weights "
            f"({source.weights.name}) beside its configuration; copy that there too"
        )
    return source


def _beside(weights: Path, configs: Sequence[str]) -> Source:
    """Return weights with the preferred one of the configurations beside them, or else its name."""
    present = [file for name in configs if (file := weights.with_name(name)).is_file()]
    if weights.name == _ARRAYS and not present:
        return Source(weights, BUNDLED / "openai-gpt.json")
    return Source(weights, present[0] if present else weights.with_name(configs[0]))


def _on_hub(name: str, configs: Sequence[str], config_required: bool) -> Source:
    """Return weights with their configuration, or those alone where that is not required."""
    expected = f"{_EXPECTED} beside a configuration ({' or '.join(configs)})"
    try:
        choices = [(weights, config) for weights in WEIGHTS for config in configs]
        paths, repository = _from_hub(name, choices, expected)
        return Source(paths[0], paths[1], repository)
    except FileNotFoundError:
        if config_required:
            raise
    paths, repository = _from_hub(name, [(weights,) for weights in WEIGHTS], _EXPECTED)
    return Source(paths[0], paths[0].with_name(configs[0]), repository)


def _weights(path: Path) -> Path:
    """Return the weights in a directory, or the file of weights itself."""
    if path.is_dir():
        path = _weights_in(_folder.current(path, "model"))
    elif (saved := _folder.current(path.parent, "model") / path.name).is_file():
        path = saved
    if not path.is_file():
        raise ValueError(
            f"{path} is no regular file: copy what it gives into a file, and name that"
        )
    check_unpacked(path)
    return path


def find(
    name_or_path: NameOrPath, choices: _Choices, optional: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Return the paths of the first complete set of files, and of the optional ones present.

    Args:
        name_or_path: a directory; a file, which is then the one that is read, with the others of
            its set beside it (a file of weights stands for its directory); or a name; see `locate`.
            Those of a `Source` are in its directory, or in the commit of its repository.
        choices: sets of file names, the preferred one first.
        optional: names of files that are returned if present.

    Returns:
        One path for each name of the set, then those of `optional` that are present.

    Raises:
        FileNotFoundError: no set is complete; the message names what was looked for and where.

    Example:
        >>> [path.name for path in find("tiny", [("vocab.txt",), ("vocab.json", "merges.txt")])]
        ['vocab.json', 'merges.txt']
    """
    expected = " or ".join("+".join(names) for names in choices)
    if isinstance(name_or_path, Source):
        name, path = name_or_path.repository, name_or_path.directory
    else:
        name, path = str(name_or_path), _on_disk(name_or_path)
    if path is None:
        some = [names for n in range(len(optional), -1, -1) for names in combinations(optional, n)]
        return _from_hub(name, [(*a, *b) for a in choices for b in some], expected)[0]
    directory, single = path, None
    if not path.is_dir():
        check_unpacked(path)
        directory = path.parent
        choices, single = _sets_of(path, choices, expected)
    directory = _folder.current(directory, "tokenizer")
    for names in choices:
        files = [single or directory / name for name in names]
        if all(file.is_file() for file in files):
            return *files, *(file for name in optional if (file := directory / name).is_file())
    raise FileNotFoundError(f"directory {str(directory)!r} holds no {expected}; put them there")


def _sets_of(path: Path, choices: _Choices, expected: str) -> tuple[_Choices, Path | None]:
    """Return the sets that a file belongs to, and the file if it replaces one of another name."""
    if path.name.endswith(_WITH_VOCABULARY) or path.name in (*WEIGHTS, *CONFIGS, _ARRAYS):
        return choices, None
    if named := [names for names in choices if path.name in names]:
        return named, None
    alone: _Choices = [names for names in choices if len(names) == 1]
    alike = [names for names in alone if names[0].endswith(path.suffix or " ")]
    if not (sets := alike or [names for names in alone if names[0].endswith(".txt")]):
        raise FileNotFoundError(
            f"{path} is not called {expected}, so that it can't be told what it is"
        )
    return sets[:1], path


def _on_disk(name_or_path: str | Path) -> Path | None:
    """Return the existing path of a name, on disk or inside the package; else None."""
    name = os.fspath(name_or_path)
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):
        return path
    if os.path.exists(index := f"{path}.index"):  # the prefix of a TensorFlow checkpoint
        return Path(index)
    if name and path.name == name and os.path.isdir(BUNDLED / name):
        return BUNDLED / name
    return None


def _weights_in(directory: Path) -> Path:
    """Return the weights in a directory, of the first format that it has."""
    for name in WEIGHTS:
        if (path := directory / name).is_file():
            return path
    file = (
        _only(directory.glob("*.safetensors"))
        or _tensorflow(directory)
        or _arrays(directory)
        or _only(directory.glob("*.npz"))
    )
    if file is not None:
        return file
    for path in sorted(directory.iterdir()):
        check_unpacked(path)
    others = (*WEIGHTS[1:], "a TensorFlow checkpoint", _ARRAYS, "an .npz file")
    raise FileNotFoundError(
        f"{directory / WEIGHTS[0]} is missing{_and_so(others)}: copy the weights there, or give "
        "the path of the directory or file that holds them"
    )


def _tensorflow(directory: Path) -> Path | None:
    """Return the latest checkpoint by TensorFlow's file `checkpoint`, or else the only one."""
    note = directory / "checkpoint"
    if note.is_file():
        with note.open("rb") as file:
            text = file.read(_LARGEST_NOTE).decode("utf-8", errors="replace")
        if latest := re.search(r'^model_checkpoint_path: "([^"\n]+)"', text, re.MULTILINE):
            prefix = re.split(r"[/\\]", latest[1])[
                -1
            ]  # a path on the machine that wrote it: take the name
            for path in (directory / f"{prefix}.index", directory / prefix):
                if path.is_file():
                    return path
    indexes = directory.glob("*.index")
    return _only(path for path in indexes if any(directory.glob(f"{path.stem}.data-*")))


def _arrays(directory: Path) -> Path | None:
    """Return the file of the shapes of OpenAI's arrays, unless an .npz file is there instead."""
    shapes = directory / _ARRAYS
    chosen = any(directory.glob("params_*.npy")) or not any(directory.glob("*.npz"))
    return shapes if shapes.is_file() and chosen else None


def _only(paths: Iterable[Path]) -> Path | None:
    files = sorted(path for path in paths if path.is_file())
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(f"{files[0].parent} holds {names}: give the path of the one that is meant")
    return files[0] if files else None


def _and_so(names: Sequence[str]) -> str:
    return f", and so are {', '.join(names)}" if names else ""


def check_unpacked(path: Path) -> None:
    """Raise FileNotFoundError, saying how to unpack it, if a file is an archive by its name."""
    if path.name.endswith(_ARCHIVES):
        how = "unzip" if path.suffix == ".zip" else "tar xf"
        raise FileNotFoundError(
            f"{path} is an archive: unpack it (cd {path.parent}; {how} {path.name}), then give the "
            "path of the directory that holds its files"
        )


def _from_hub(name: str, choices: _Choices, expected: str) -> tuple[tuple[Path, ...], str]:
    """Return the first complete set of files, from the hub's cache or else from the network.

    Beside it comes the repository with its commit, as a name of this very set.
    """
    bundled = ", ".join(sorted(folder.name for folder in BUNDLED.glob("*/"))) or "none"
    if re.match(r"[a-z0-9]+:/", name):  # a `Path` has made one slash of the two
        raise FileNotFoundError(_no_url(name))
    if not _NAME.fullmatch(name) or ".." in name or len(name) > 200:
        raise FileNotFoundError(
            f"{name!r} is no directory and no name of a model ('model' or 'owner/model'); give a "
            f"directory that holds {expected}"
        )
    from huggingface_hub import constants

    repository, _, revision = name.partition("@")
    revision = revision or constants.DEFAULT_REVISION
    homes = _homes(repository)
    failures = _hub_client.failures()
    try:
        for home in homes:
            for names in choices:
                if paths := _hub_client.whole(names, _hub_client.cached(home, revision)):
                    return paths, f"{home}@{paths[0].parent.name}"
        if constants.HF_HUB_OFFLINE:
            raise _hub_client.Reason("HF_HUB_OFFLINE is set: unset it to download them")
        paths = _hub_client.download(homes[0], revision, choices)
        return paths, f"{homes[0]}@{paths[0].parent.name}"
    except failures as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        candidates = [*bundled.split(", "), *PUBLISHED, *PUBLISHED.values()]
        similar = difflib.get_close_matches(repository.lower(), candidates, n=1, cutoff=0.8)
        near = f" (is {similar[0]!r} meant?)" if similar and similar[0] not in homes else ""
        why = _hub_client.why(error, homes[0], revision)
        raise FileNotFoundError(
            f"{name!r} is no directory or file, no model inside the package (there: {bundled}), "
            f"and the hub ({constants.ENDPOINT}, cache {constants.HF_HUB_CACHE}) gave no "
            f"{expected}: {why}; check the name{near}, or do it by hand: put these files of "
            f"{constants.ENDPOINT}/{homes[0]} into a directory and load that"
        ) from error


def _no_url(url: str) -> str:
    """Return the message about an address, such as those of the archives once published."""
    stem = url.rpartition("/")[2].partition(".")[0]
    known = next((n for n in PUBLISHED if stem.removesuffix("-pytorch_model").startswith(n)), "")
    meant = f"give the name of the model, {known!r}" if known else "give its name on the hub"
    return (
        f"{url!r} is an address, and load fetches from the hub alone: {meant}, or unpack what the "
        "address gives and name the directory"
    )


def _homes(repository: str) -> tuple[str, ...]:
    """Return the names of a repository: the current one, and the one it was published under."""
    for name, home in PUBLISHED.items():
        if repository in (name, home):
            return home, name
    return (repository,)
