"""PyTorch's files: what torch reads, fnlm reads, bit for bit; what is damaged or hostile, neither.

References: torch.load, pytorch-pretrained-bert.
"""

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
from conftest import data_path
from families import GPT2
from hostile import Tensors, same
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fnlm.files import _torch_pickle

FORMATS = {"zip": False, "legacy": True}
both = pytest.mark.parametrize("legacy", FORMATS.values(), ids=FORMATS)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def saved(value: Any, legacy: bool, **options: Any) -> bytes:
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy, **options)
    return file.getvalue()


def from_torch(path: Path) -> Tensors:
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def check_equal(path: Path, wanted: Tensors) -> None:
    """The tensors of a file are these, with their strides and the memory that they share."""
    file = _torch_pickle.read(path)
    found = dict(file)
    assert same(found, wanted)
    for name, x in wanted.items():
        assert found[name].stride() == x.stride()
        assert file.entries[name].shape == x.shape
        assert f"torch.{file.entries[name].dtype}" == str(x.dtype)
    filled = [name for name, x in wanted.items() if x.numel()]
    for one in filled:
        for other in filled:
            apart = wanted[one].data_ptr() - wanted[other].data_ptr()
            if (
                wanted[one].untyped_storage().data_ptr()
                == wanted[other].untyped_storage().data_ptr()
            ):
                assert found[one].data_ptr() - found[other].data_ptr() == apart


@both
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict_is_read_as_torch_reads_it(
    legacy: bool, protocol: int, tmp_path: Path
) -> None:
    """`_metadata`, parameters, ties, views, empty and 0-d tensors, names of all sorts."""
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, dtype=torch.bfloat16))
    state = model.state_dict(keep_vars=True)
    state |= {"tie": state["0.weight"], "turned": state["0.weight"].t(), "": torch.tensor(3)}
    state |= {"a b/ü\n.": torch.empty(0, 3), "part": torch.arange(20)[3:17:4]}
    (tmp_path / "w.bin").write_bytes(saved(state, legacy, pickle_protocol=protocol))
    check_equal(tmp_path / "w.bin", torch.load(tmp_path / "w.bin", weights_only=protocol < 3))


@st.composite
def state_dicts(draw: Any) -> Tensors:
    """Tensors of every type, of awkward shapes, that are views of others or hold gaps."""
    made: list[Any] = []
    for _ in range(draw(st.integers(1, 5))):
        if made and draw(st.booleans()):
            x = draw(st.sampled_from(made))
        else:
            shape = draw(st.lists(st.integers(0, 4), max_size=3))
            x = torch.randint(0, 250, shape).to(draw(st.sampled_from(DTYPES)))
        match draw(st.integers(0, 4)):
            case 0 if x.ndim:
                x = x.transpose(0, -1)
            case 1 if x.ndim and x.shape[0] > 1:
                x = x[draw(st.integers(0, x.shape[0] - 1)) :: draw(st.integers(1, 2))]
            case 2:
                x = x[None].expand(draw(st.integers(1, 3)), *x.shape)
            case 3 if x.ndim and x.shape[-1]:
                x = x[..., -1]
        made.append(x)
    return {f"x.{n}": x for n, x in enumerate(made)}


@given(state_dicts(), st.sampled_from([False, True]))
def test_any_tensors_make_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, tensors: Tensors, legacy: bool
) -> None:
    folder = tmp_path_factory.mktemp("round")
    (folder / "theirs.bin").write_bytes(saved(tensors, legacy))
    check_equal(folder / "theirs.bin", from_torch(folder / "theirs.bin"))
    assert same(dict(_torch_pickle.read(folder / "theirs.bin")), tensors)
    _torch_pickle.write(
        _torch_pickle.read(folder / "theirs.bin"), folder / "ours.bin", legacy=legacy
    )
    check_equal(folder / "ours.bin", from_torch(folder / "ours.bin"))
    assert same(from_torch(folder / "ours.bin"), tensors)


@both
def test_ties_stay_ties_and_nothing_more_is_written(legacy: bool, tmp_path: Path) -> None:
    """Shared tensors are kept: 4 kB once, not twice, and not the 4 MB they lie in."""
    large = torch.randn(1000, 1000)
    path = tmp_path / "w.bin"
    _torch_pickle.write({"a": large[3], "b": large[3], "c": large[3, :10]}, path, legacy=legacy)
    assert 4000 < path.stat().st_size < 8000
    found = from_torch(path)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert torch.equal(found["c"], large[3, :10])


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    _torch_pickle.write({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        _torch_pickle.write({"a": torch.ones(2), "b": 3}, path)  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.bin"]


@both
def test_pytorch_pretrained_bert_reads_what_is_written(legacy: bool, tmp_path: Path) -> None:
    """And its state dicts are read: zip and legacy, with `_metadata` and tied embeddings."""
    model = peers.ppb_gpt2(GPT2.config.to_dict())
    (tmp_path / "pytorch_model.bin").write_bytes(saved(model.state_dict(), legacy))
    (tmp_path / "config.json").write_text(GPT2.config.to_json_string(), encoding="utf-8")
    found = _torch_pickle.read(tmp_path / "pytorch_model.bin")
    assert same(dict(found), dict(model.state_dict()))
    changed = {name: x * 2 for name, x in found.items()}
    _torch_pickle.write(changed, tmp_path / "pytorch_model.bin", legacy=legacy)
    with peers.quiet():
        again = peers.ppb().GPT2LMHeadModel.from_pretrained(str(tmp_path))
    assert same({n: x for n, x in again.state_dict().items() if n in changed}, changed)


def test_a_published_checkpoint_is_read_as_torch_reads_it() -> None:
    path = data_path("checkpoints/bert-xsmall-dummy-pt/pytorch_model.bin")
    assert same(dict(_torch_pickle.read(path)), from_torch(path))


@both
@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "net"])
def test_the_state_dict_is_found_in_a_checkpoint(name: str, legacy: bool, tmp_path: Path) -> None:
    """Optimizers, numbers, texts and lists around it are left alone."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    around = {"epoch": 3, "loss": [1.5, None, True, 1 << 70], "dtype": torch.float32}
    around |= {"optimizer": optimizer.state_dict(), "shape": torch.Size([2])}
    around |= {"device": torch.device("cpu"), name: model.state_dict()}
    (tmp_path / "w.pt").write_bytes(saved(around, legacy))
    check_equal(tmp_path / "w.pt", dict(model.state_dict()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}, "there are several, ['a', 'b']"),
        ({"a": 1, "b": [torch.ones(1)]}, "there are none"),
        ([torch.ones(1)], "no dict"),
        (torch.ones(1), "no dict"),
        ({3: torch.ones(1)}, "a tensor has a int as its name"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "torch ComplexFloatStorage"),
        ({"a": torch.ones(3).to_sparse()}, "torch._utils _rebuild_sparse_tensor"),
        ({"a": torch.ones(1, device="meta")}, "_rebuild_meta_tensor_no_storage"),
        (nn.Linear(1, 1), "torch.nn.modules.linear Linear"),
        ({"a": np.float64(1)}, "numpy"),
    ],
)
@both
def test_a_file_without_a_dict_of_tensors_is_named(
    value: Any, message: str, legacy: bool, tmp_path: Path
) -> None:
    (tmp_path / "w.pt").write_bytes(saved(value, legacy))
    with pytest.raises(ValueError, match="w.pt can't be read") as caught:
        _torch_pickle.read(tmp_path / "w.pt")
    assert message in str(caught.value)


def test_python_2_wrote_ordered_dicts_of_pairs_and_texts_of_bytes(tmp_path: Path) -> None:
    """As files of 2017 are: written by hand here, in the words of Python 2's pickles."""
    plain = saved({"w": torch.arange(3.0)}, True, pickle_protocol=2)
    start = plain.index(b"\x80\x02}q\x00X\x01\x00\x00\x00w")
    stop = plain.index(b"s.", start)
    body = plain[start + len(b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01") : stop]
    old = b"\x80\x02ccollections\nOrderedDict\n(](](U\x01w" + body + b"eetR."
    (tmp_path / "w.bin").write_bytes(plain[:start] + old + plain[stop + 2 :])
    assert same(dict(_torch_pickle.read(tmp_path / "w.bin")), {"w": torch.arange(3.0)})


def test_views_of_storages_as_torch_0_3_wrote_them(tmp_path: Path) -> None:
    plain = saved({"w": torch.arange(6.0)[1:4]}, True)
    view = b"(X\x01\x00\x00\x00vK\x02K\x04t"
    edited = plain.replace(b"K\x06Ntq", b"K\x06" + view + b"tq")
    assert edited != plain
    (tmp_path / "w.bin").write_bytes(edited)
    assert same(dict(_torch_pickle.read(tmp_path / "w.bin")), {"w": torch.arange(3.0, 6.0)})
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").write_bytes(edited.replace(view, view.replace(b"K\x04", b"K\x05")))
    with pytest.raises(ValueError, match="has a view that leaves it"):
        _torch_pickle.read(tmp_path / "w.bin")


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    """Damage in a tensor shows when it is read, not when the file is opened."""
    content = saved({"a": torch.full((5000,), 2.0), "b": torch.full((5000,), 3.0)}, False)
    place = content.index(struct.pack("<f", 3.0) * 100)
    (tmp_path / "w.bin").write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    file = _torch_pickle.read(tmp_path / "w.bin")
    assert torch.equal(file["a"], torch.full((5000,), 2.0))
    with pytest.raises(ValueError, match="w.bin can't be read: member 'archive/data/1' is damaged"):
        file["b"]


def test_files_written_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "w.bin").write_bytes(saved({"a": torch.arange(5.0)}, False))
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(dict(_torch_pickle.read(tmp_path / "w.bin")), {"a": torch.arange(5.0)})


def test_files_are_recognised_by_their_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w"
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    for content, wanted in (
        *((saved({"a": torch.ones(1)}, legacy), True) for legacy in FORMATS.values()),
        (saved({"a": torch.ones(1)}, True, pickle_protocol=4), True),
        (pickle.dumps({"a": 1}), True),
        ((tmp_path / "w.npz").read_bytes(), False),
        (b"", False),
        (b"{}", False),
        (b"\x80\x02" + bytes(6) + b"{" + b" " * 0x27E + b"}", False),  # safetensors
    ):
        path.write_bytes(content)
        assert _torch_pickle.can_read(path) == wanted
