"""One model in every format: the same tensors, and any single change of any tensor is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_writer as tf
import torch
from safetensors.torch import save_file
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.params import _rename, io
from fnlm.params.names.gpt2 import FAMILY

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, str], Any]
CONFIG = gpt2.Config(vocab_size=7, n_positions=5, n_ctx=5, n_embd=6, n_layer=2, n_head=3)


def safetensors(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors")


def shards(tensors: Tensors, folder: Path) -> None:
    """Two files, and the index that says which tensor is in which."""
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: x for n, x in tensors.items() if files[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def torch_zip(tensors: Tensors, folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def torch_legacy(tensors: Tensors, folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def npz(tensors: Tensors, folder: Path) -> None:
    arrays: dict[str, Any] = {name: x.numpy() for name, x in tensors.items()}
    np.savez(folder / "model.npz", **arrays)


def bundle(tensors: Tensors, folder: Path) -> None:
    """TensorFlow's format of today."""
    data = b""
    entries: tf.Entries = {}
    for name, x in tensors.items():
        content = x.numpy().tobytes()
        code = tf.CODES[str(x.numpy().dtype)]
        entries[name] = tf.Stored(code, x.shape, 0, len(data), len(content))
        data += content
    tf.bundle(folder / "model.ckpt", entries, [data])


FORMATS = {
    f.__name__: f for f in (safetensors, shards, torch_zip, torch_legacy, npz, bundle)
}  # fmt: skip
DIALECTS = {name: FAMILY.dialects[2 if name == "bundle" else 0] for name in FORMATS}


def params(form: str) -> Any:
    """A model that the format can hold: a release of TensorFlow has no heads."""
    heads = () if form == "bundle" else gpt2.HEADS
    made = gpt2.init(CONFIG, random.key(0), heads)
    return tree.map(lambda x: x + random.normal(random.key(1), tuple(x.shape)), made)


def foreign(form: str) -> Tensors:
    leaves = {name: value for name, value in params(form).items() if name != "config"}
    given = _rename.to_foreign(leaves, DIALECTS[form])
    return {name: x.contiguous() for name, x in given.items()}


def write(tensors: Tensors, form: str, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    CONFIG.to_json_file(folder / "config.json")
    FORMATS[form](tensors, folder)


@pytest.mark.parametrize("form", FORMATS)
def test_a_model_is_the_same_in_every_format(form: str, tmp_path: Path) -> None:
    write(foreign(form), form, tmp_path)
    loaded, made = gpt2.load(tmp_path), params(form)
    assert tree.structure(loaded) == tree.structure(made)
    for (path, x), y in zip(tree.named_leaves(loaded), tree.leaves(made), strict=True):
        assert x.equal(y), path


def test_a_checkpoint_of_tensorflow_has_a_name_of_several_files(tmp_path: Path) -> None:
    write(foreign("bundle"), "bundle", tmp_path)
    for name in ("model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        assert io.read(tmp_path / name).entries.keys() == foreign("bundle").keys()
        assert tree.count(gpt2.load(tmp_path / name)) == tree.count(params("bundle"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        io.read(tmp_path / "nowhere")


def longer(x: Tensor) -> Tensor:
    return torch.zeros(*x.shape[:-1], x.shape[-1] + 1)


CHANGES: dict[str, Change] = {
    "deleted": lambda t, name: t.pop(name),
    "added": lambda t, name: t.update({f"{name}.more": torch.zeros(2)}),
    "renamed": lambda t, name: t.update({f"{name}x": t.pop(name)}),
    "reshaped": lambda t, name: t.update({name: longer(t[name])}),
    "without an axis": lambda t, name: t.update({name: t[name].sum(0)}),
    "of whole numbers": lambda t, name: t.update({name: t[name].int()}),
    "of another precision": lambda t, name: t.update({name: t[name].double()}),
}


def words(change: str, name: str, tensors: Tensors, changed: Tensors, form: str) -> list[str]:
    """What the error has to say."""
    match = _rename.classify(name, FAMILY)
    axes = match.layout.split(" -> ") if match.layout else ["", ""]
    ours = _rename.from_foreign(tensors, FAMILY, "")[0][match.path].shape
    if change == "deleted":
        return ["missing", name, match.path, str(list(ours))]
    if change == "added":
        return [f"unexpected {name}.more"]
    if change == "renamed":
        return [f"unexpected {name}x", f"nearest: {name}"]
    if change in ("reshaped", "without an axis"):
        theirs = list(changed[name].shape)
        if axes[0] and len(theirs) != len(axes[0].split()):
            return [name, str(theirs), f"expected axes ({', '.join(axes[0].split())})"]
        shown = _rename.from_foreign({name: changed[name]}, FAMILY, "")[0][match.path].shape
        return [name, match.path, str(list(shown)), str(list(ours))]
    return [name, match.path, str(changed[name].dtype), "torch.float32"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", FORMATS)
def test_any_single_change_of_any_tensor_is_named(
    form: str, change: str, tmp_path: Path, tally: Callable[..., None]
) -> None:
    tensors = foreign(form)
    for name in tensors:
        changed = {key: x.clone() for key, x in tensors.items()}
        CHANGES[change](changed, name)
        write(changed, form, tmp_path)
        with pytest.raises(ValueError) as caught:
            gpt2.load(tmp_path)
        text = str(caught.value)
        for part in words(change, name, tensors, changed, form):
            assert part in text, (part, text)
        assert "\n" not in text and len(text) < 1000
    tally(f"{form}, one tensor changed", {"error": len(tensors)})
