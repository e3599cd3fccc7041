"""What `from_pretrained` takes in other libraries is answered in one line by every `load`."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fnlm import _former
from fnlm.families import FAMILIES
from fnlm.files.hub import PUBLISHED

INSTEAD = {
    name: _former._ARGUMENTS[name]
    for name in """
cache_dir config device device_map do_basic_tokenize do_lower_case dtype
errors force_download from_tf local_files_only max_len merges_file never_split
num_labels num_special_tokens output_hidden_states revision special_tokens state_dict token
torch_dtype trust_remote_code use_auth_token
""".split()
}
LOADERS = [
    import_module(f"fnlm.{part}{name}").load for name in FAMILIES for part in ("", "tokenize.")
]
over_loaders = pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__module__)


@over_loaders
@pytest.mark.parametrize("name", INSTEAD)
def test_an_old_argument_is_answered(load: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"load.. has no argument '{name}': ") as caught:
        load("tiny", **{name: "x"})
    assert INSTEAD[name] in str(caught.value)


@over_loaders
def test_other_arguments_are_those_of_the_signature(load: Any) -> None:
    assert not inspect.signature(load).parameters.keys() & INSTEAD.keys()
    assert "name_or_path" in inspect.signature(load).parameters and load.__doc__
    with pytest.raises(TypeError, match="has no argument 'nonsense'"):
        load("tiny", nonsense=1)


@over_loaders
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_answered(load: Any, kind: type) -> None:
    for name in PUBLISHED:
        for tail in (".tar.gz", "-vocab.txt", "-pytorch_model.bin"):
            with pytest.raises(FileNotFoundError, match=f"give the name of the model, '{name}'"):
                load(kind(f"https://s3.amazonaws.com/models.huggingface.co/bert/{name}{tail}"))
    with pytest.raises(
        FileNotFoundError, match="is an address, and load fetches from the hub alone"
    ):
        load(kind("http://example.org/model.zip"))


@over_loaders
def test_an_archive_is_answered(load: Any, tmp_path: Path) -> None:
    archive = tmp_path / "bert-base-uncased.tar.gz"
    archive.write_bytes(b"")
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        load(archive)
    assert "tar xf bert-base-uncased.tar.gz" in str(caught.value), caught.value
