"""Files as others have them: trainers' variables, wrappers' prefixes, tensors too many, links."""

import ast
import json
import os
import random as chance
import re
import shlex
import shutil
import signal
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_writer as tf
import torch
from conftest import ROOT
from families import BERT, FAMILIES, GPT, GPT2, TRANSFO_XL, Family, make_params, with_heads
from hostile import little_memory
from safetensors.torch import load_file, save_file
from torch import Tensor

from fnlm import bert, cli, gpt, gpt2, random, transfo_xl, tree
from fnlm.files import hub
from fnlm.params import _rename, io
from fnlm.programs import _command

Tensors = dict[str, Tensor]
BY_NAME = {family.name: family for family in FAMILIES}
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def foreign(family: Family, dialect: str, heads: tuple[str, ...] = ()) -> Tensors:
    leaves = {k: v for k, v in with_heads(family, heads).items() if k != "config"}
    (found,) = (d for d in family.names.dialects if d.name == dialect)
    return {name: x.contiguous() for name, x in _rename.to_foreign(leaves, found).items()}


def put(place: Path, family: Family, tensors: Tensors, form: str = "bin") -> Path:
    """A folder of a model as pytorch-pretrained-bert wrote it, in some form of file."""
    place.mkdir(exist_ok=True)
    family.config.to_json_file(place / "config.json")
    if form == "bin":
        torch.save(tensors, place / "pytorch_model.bin")
    elif form == "npz":
        arrays: dict[str, Any] = {name: x.numpy() for name, x in tensors.items()}
        np.savez(place / "model.npz", **arrays)
    elif form == "index":
        files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
        for file in set(files.values()):
            save_file({n: x for n, x in tensors.items() if files[n] == file}, place / file)
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        entries: tf.Entries = {}
        data = b""
        for name, x in tensors.items():
            content = x.numpy().tobytes()
            code = tf.CODES[str(x.numpy().dtype)]
            entries[name] = tf.Stored(code, list(x.shape), 0, len(data), len(content))
            data += content
        tf.bundle(place / "model.ckpt", entries, [data])
    return place


def assert_same(found: Any, wanted: Any) -> None:
    ours, theirs = dict(tree.named_leaves(found)), dict(tree.named_leaves(wanted))
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert ours[path].equal(leaf), path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; its exit code and all that it said."""

    def run(*words: object) -> tuple[int, str]:
        code = cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


# What a trainer keeps beside the weights.

SLOTS = [
    "BERTAdam", "BERTAdam_1", "LAMBOptimizer", "LAMBOptimizer_1", "AdamWeightDecayOptimizer",
    "ExponentialMovingAverage", "Momentum", "RMSProp", "RMSProp_1", "Adam_1", "adam_m", "adam_v",
    "accum_grad", "my.Optimizer-2",
]  # fmt: skip
COUNTERS = [
    "global_step", "beta1_power", "beta2_power_1", "OptimizeLoss/beta1_power", "learning_rate",
    "current_loss_scale", "good_steps", "OptimizeLoss/learning_rate", "loss_scale/bad_steps",
]  # fmt: skip
TF_FAMILIES = {"bert": ("masked_lm", "next_sentence_prediction"), "gpt2": (), "transfo_xl": ()}


@pytest.mark.parametrize("form", ["npz", "bundle"])
@pytest.mark.parametrize("name", TF_FAMILIES)
def test_slots_are_a_kind(name: str, form: str, tmp_path: Path, run: Any) -> None:
    family, weights = BY_NAME[name], foreign_or_written(BY_NAME[name], TF_FAMILIES[name])
    wanted = load(put(tmp_path / "bare", family, weights, form), family)
    more: Tensors = {c: torch.tensor(3.0) for c in COUNTERS}
    for weight, x in weights.items():
        more |= {f"{weight}/{slot}": x * 2 for slot in SLOTS[:: 5 if form == "bundle" else 1]}
        more[f"OptimizeLoss/{weight}/Adam"] = x
        more[f"OptimizeLoss/{weight}/LAMB"] = x
        more[f"{weight}/count"] = torch.tensor(1)
        for axis in range(x.ndim):  # of Adafactor: the rows and the columns of a second moment
            more[f"{weight}/v{axis}"] = x.sum(axis)
    place = put(tmp_path / "all", family, weights | more, form)
    assert_same(load(place, family), wanted)
    code, said = run("inspect", place)
    assert code == 0 and f"of a trainer: {len(more)} tensors" in said
    code, said = run("convert", place, tmp_path / "made")
    assert code == 0 and f"not needed: {len(more)} of a trainer" in said
    assert_same(family.module.load(tmp_path / "made"), wanted)


def foreign_or_written(family: Family, heads: tuple[str, ...]) -> Tensors:
    """Weights by TensorFlow's names; where no file of them is like ours, by the torch names."""
    try:
        return foreign(family, "tensorflow", heads)
    except ValueError:
        return foreign(family, "transformers", heads)


def load(place: Path, family: Family) -> Any:
    return family.module.load(place)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model/wte/lora_a", (36, 2)),  # neither its shape nor one without an axis
        ("model/wpx/Optimizer", (24, 36)),  # of no weight
        ("model/wte/more/Optimizer", (41, 36)),
        ("model/h0/ln_1/beta", (36,)),  # no counter: it has an axis
        ("model/loss_scale", (36,)),
        ("model/gate", ()),  # one number, which is no counter's
        ("transformer.wte.weight.mask", (41, 36)),
    ],
)
def test_unexpected_tensors_beside_optimizer_slots_are_errors(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    weights = foreign(GPT2, "tensorflow") | {name: torch.ones(shape)}
    with pytest.raises(ValueError, match=re.escape(f"unexpected {name}")):
        gpt2.load(put(tmp_path, GPT2, weights, "npz"))


def test_a_slot_without_its_weight_is_an_error(tmp_path: Path) -> None:
    weights = foreign(GPT2, "tensorflow")
    weights["model/wte/BERTAdam"] = weights.pop("model/wte")
    with pytest.raises(ValueError, match=r"unexpected model/wte/BERTAdam.*missing model/wte"):
        gpt2.load(put(tmp_path, GPT2, weights, "npz"))


@each_family
def test_the_state_of_torchs_optimizers_is_no_parameter(family: Family, tmp_path: Path) -> None:
    weights = foreign(family, "transformers")
    more: Tensors = {"optimizer.state.0.exp_avg": torch.ones(3), "step": torch.tensor(1)}
    for name, x in weights.items():
        more |= {f"{name}.{state}": x for state in ("exp_avg", "exp_avg_sq", "momentum_buffer")}
        more[f"{name}.step"] = torch.tensor(1)
    assert_same(
        load(put(tmp_path / "a", family, weights | more), family),
        load(put(tmp_path / "b", family, weights), family),
    )


# Prefixes.

WRAPPERS = (
    "module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
    "_forward_module", "_module", "base_model", "auto_model",
)  # fmt: skip


@each_family
def test_no_name_of_a_family_is_a_wrappers(family: Family) -> None:
    for dialect in family.names.dialects:
        for rule in dialect.rules:
            assert not {*re.split(r"[./]", rule.theirs)} & {*WRAPPERS}


@pytest.mark.parametrize("form", ["bin", "index"])
@each_family
def test_wrappers_prefixes_are_a_kind(family: Family, form: str, tmp_path: Path) -> None:
    """Any of them, nested and repeated in any order, before the name and inside of it."""
    rng = chance.Random(0)
    wanted = with_heads(family, ())
    for number in range(12):
        weights = foreign(family, rng.choice([d.name for d in family.names.dialects[:2]]))
        (prefix,) = {d.prefix for d in family.names.dialects[:2]}
        bare = rng.randrange(2)
        before = "".join(f"{w}." for w in rng.choices(WRAPPERS, k=rng.randrange(1, 4)))
        inside = f".{rng.choice(WRAPPERS)}." if rng.randrange(2) else "."
        wrapped = {
            before + (n.removeprefix(prefix) if bare else n).replace(".0.", f".0{inside}"): x
            for n, x in weights.items()
        }
        assert_same(load(put(tmp_path / str(number), family, wrapped, form), family), wanted)


def test_a_model_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    weights = foreign(GPT2, "transformers")
    both = weights | {f"module.{name}": x + 1 for name, x in weights.items()}
    with pytest.raises(ValueError, match="both transformer.* and module.transformer.* name the"):
        gpt2.load(put(tmp_path, GPT2, both))


# Tensors that are left out by name.


@pytest.mark.parametrize("form", ["bin", "npz", "index"])
def test_tensors_are_left_out_by_name(form: str, tmp_path: Path) -> None:
    weights = foreign(GPT2, "transformers")
    more = {"score.weight": torch.ones(2, 36), "v_head.a": torch.ones(1), "v_head.b": torch.ones(1)}
    place = put(tmp_path, GPT2, weights | more, form)
    for patterns in (("score.weight", "v_head.*"), ["*_head.?", "score*"], ("[sv]*.[!0-9]*",)):
        assert_same(gpt2.load(place, ignore=patterns), with_heads(GPT2, ()))
    with pytest.raises(ValueError, match=r"unexpected v_head.a.*pass ignore=\('v_head.a', 'v_he"):
        gpt2.load(place, ignore="score.weight")
    with pytest.raises(
        ValueError, match=r"no tensor that ignore='scores.weight' matches \(near.*: s"
    ):
        gpt2.load(place, ignore=("v_head.*", "scores.weight"))
    with pytest.raises(ValueError, match=r"missing transformer.wte.weight"):
        gpt2.load(place, ignore=("v_head.*", "score.*", "*.wte.weight"))


def test_heads_that_are_not_wanted_need_no_name(tmp_path: Path) -> None:
    """The base below a classifier, of which nothing tells what it classifies."""
    place = tmp_path / "a"
    unclear_head(place)
    with pytest.raises(ValueError, match=r"heads=\('sequence_.*or .*ignore=\('classifier\.\*',\)"):
        bert.load(place)
    for options in ({"heads": ()}, {"ignore": ("classifier.*",)}):
        assert_same(bert.load(place, **options), with_heads(BERT, ()))
    found = bert.load(place, heads=("question_answering",), key=KEY)["heads"]
    assert found.keys() == {"question_answering"}


def test_a_tree_that_torch_saved_says_what_to_do(tmp_path: Path) -> None:
    torch.save(make_params(GPT2), tmp_path / "x.bin")
    with pytest.raises(
        ValueError, match="a tree of fnlm's: torch.load it, and write it by its fam"
    ):
        io.read(tmp_path / "x.bin")


@each_family
def test_every_family_leaves_out(family: Family, tmp_path: Path) -> None:
    weights = foreign(family, "transformers") | {"strange": torch.ones(1)}
    place = put(tmp_path, family, weights)
    with pytest.raises(ValueError, match=r"unexpected strange; .*pass ignore=\('strange',\)"):
        family.module.load(place)
    assert_same(family.module.load(place, ignore=("strange",)), with_heads(family, ()))


# Every remedy that a command prints is a flag of that command.


def unclear_head(place: Path) -> None:
    put(place, BERT, foreign(BERT, "pytorch-pretrained-bert", ("sequence_classification",)))


def score(place: Path) -> None:
    put(place, GPT2, foreign(GPT2, "transformers") | {"score.weight": torch.ones(2, 36)})


def many(place: Path) -> None:
    more = {f"adapter.{i}.w": torch.ones(1) for i in range(9)}
    put(place, GPT2, foreign(GPT2, "transformers") | more)


def mixed(place: Path) -> None:
    weights = foreign(GPT2, "transformers")
    put(place, GPT2, weights | {"transformer.ln_f.bias": weights["transformer.ln_f.bias"].double()})


def headless(place: Path) -> None:
    put(place, GPT2, foreign(GPT2, "transformers"))


REMEDIES = {  # the file, the words of the command, and the flags that the error must offer
    "heads": (unclear_head, (), "--heads sequence_classification"),
    "ignore": (score, (), "--ignore score.weight"),
    "ignore many": (many, (), "--ignore 'adapter.*'"),
    "seed": (headless, ("--heads", "multiple_choice"), "--seed 0"),
    "dtype": (mixed, (), "--dtype"),
}
VERB = ("convert_gpt2_checkpoint",)


def others_in(folder: Path) -> Iterator[str]:
    """Every argument that a message of the package tells to pass."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from re.findall(r"\b(?:pass|give|with|by) (\w+)=", node.value)


def test_every_argument_that_errors_of_reading_name_has_a_flag() -> None:
    told = {*others_in(ROOT / "fnlm" / "params"), "heads", "ignore", "key"}
    assert told <= {*_command.FLAGS}, (
        "give it a flag in FLAGS of fnlm.programs._command, or say it otherwise"
    )
    parser = cli._parser()
    (commands,) = (action.choices for action in parser._actions if action.dest == "command")
    assert isinstance(commands, dict)
    flags = {f"--{name}" for name in _command.FLAGS.values()}
    assert flags <= {*commands["convert"]._option_string_actions}
    for name in ("inspect", *_command.VERBS):
        assert {"--heads", "--ignore", "--seed"} <= {*commands[name]._option_string_actions}


@pytest.mark.parametrize("what", REMEDIES)
def test_a_remedy_is_a_flag_that_helps(what: str, tmp_path: Path, run: Any) -> None:
    make, words, flags = REMEDIES[what]
    make(tmp_path / "a")
    commands = [["convert", tmp_path / "a", tmp_path / "b"], ["inspect", tmp_path / "a"]]
    for command in commands[: 1 if what == "dtype" else 2]:
        code, said = run(*command, *words)
        assert code == (2 if command[0] == "convert" else 0)
        assert flags in said and not re.search(r"\b(heads|ignore|key|dtype)=", said), said
        more = ["--dtype", "float32"] if what == "dtype" else shlex.split(flags)
        code, said = run(*command, *words, *more)
        assert code == 0 and "refuses" not in said, said


def test_other_commands_name_the_one_that_helps(tmp_path: Path, run: Any) -> None:
    score(tmp_path / "a")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(hub.BUNDLED / "tiny" / name, tmp_path / "a" / name)
    code, said = run("generate", tmp_path / "a")
    assert code == 2 and "fnlm convert --ignore score.weight" in said
    code, said = run(*VERB, tmp_path / "a", tmp_path / "b")
    assert code == 2 and "pass --ignore score.weight" in said
    assert run(*VERB, tmp_path / "a", tmp_path / "b", "--ignore", "score.weight")[0] == 0


# Files that people hold: each is converted, and shown by `fnlm inspect`.


def classifier(place: Path, labels: int) -> None:
    config = json.loads(BERT.config.to_json_string())
    params = make_params(BERT)
    state = foreign(BERT, "pytorch-pretrained-bert", ("sequence_classification",))
    state["classifier.weight"] = torch.ones(labels, params["config"].hidden_size)
    state["classifier.bias"] = torch.ones(labels)
    put(place, BERT, state)
    (place / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if "label" not in k})
    )


def without_softmax(place: Path) -> None:
    weights = foreign(TRANSFO_XL, "pytorch-pretrained-bert")
    put(place, TRANSFO_XL, {n: x for n, x in weights.items() if not n.startswith("crit.")})


def without_cutoffs(place: Path) -> None:
    small = transfo_xl.Config(
        n_token=41, cutoffs=(), d_model=36, d_embed=36, n_head=3, d_head=10, d_inner=20, n_layer=1
    )
    transfo_xl.save(transfo_xl.init(small, KEY), place, dialect="pytorch-pretrained-bert")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "cutoffs"})
    )


def slots(place: Path) -> None:
    weights = foreign(BERT, "tensorflow", ("masked_lm", "next_sentence_prediction"))
    more = {f"{n}/{slot}": x for n, x in weights.items() for slot in ("BERTAdam", "BERTAdam_1")}
    put(place, BERT, weights | more | {"global_step": torch.tensor(5)}, "bundle")


def compiled(place: Path) -> None:
    put(place, GPT2, {f"_orig_mod.{n}": x for n, x in foreign(GPT2, "transformers").items()})


def padded(place: Path) -> None:
    config = gpt2.Config(**{**json.loads(GPT2.config.to_json_string()), "vocab_size": 64})
    gpt2.save(gpt2.init(config, KEY), place)


def marked(place: Path) -> None:
    headless(place)
    text = (place / "config.json").read_bytes()
    (place / "config.json").write_bytes(b"\xef\xbb\xbf" + text)


def untied(place: Path) -> None:
    put(place, GPT2, foreign(GPT2, "transformers") | {"lm_head.weight": torch.ones(41, 36)})
    config = json.loads(GPT2.config.to_json_string()) | {"tie_word_embeddings": False}
    (place / "config.json").write_text(json.dumps(config))


def scaled(place: Path) -> None:
    headless(place)
    config = json.loads(GPT2.config.to_json_string()) | {"scale_attn_by_inverse_layer_idx": True}
    (place / "config.json").write_text(json.dumps(config))


def arrays_and_a_stray(place: Path) -> None:
    params = with_heads(GPT, ())
    (dialect,) = (d for d in gpt.names.FAMILY.dialects if d.name == "openai")  # type: ignore[attr-defined]
    leaves = {k: v for k, v in params.items() if k != "config"}
    ordered = list(dict(sorted(_rename.to_foreign(leaves, dialect).items(), key=_number)).values())
    place.mkdir()
    flat = torch.cat([x.flatten() for x in ordered]).numpy()
    for i, part in enumerate(np.array_split(flat, 10)):
        np.save(place / f"params_{i}.npy", part)
    (place / "params_shapes.json").write_text(json.dumps([list(x.shape) for x in ordered]))
    GPT.config.to_json_file(place / "config.json")
    np.savez(place / "notes.npz", x=np.ones(3))


def _number(item: tuple[str, Tensor]) -> int:
    return int(item[0].removeprefix("params."))


def lightning(place: Path) -> None:
    """A run of a trainer: the state dict among other things, wrapped."""
    weights = {f"model.{n}": x for n, x in foreign(BERT, "transformers", ("masked_lm",)).items()}
    put(place, BERT, {})
    state = {"epoch": 3, "state_dict": weights, "optimizer_states": [{"state": {}}]}
    torch.save(state, place / "pytorch_model.bin")


KEY = random.key(0)
HELD = {
    "a classifier of 2 labels": (
        lambda p: classifier(p, 2),
        ("--heads", "sequence_classification"),
    ),
    "TensorFlow with slots": (slots, ()),
    "torch.compile": (compiled, ()),
    "score.weight": (score, ("--ignore", "score.weight")),
    "a padded vocabulary": (padded, ()),
    "a stray archive": (arrays_and_a_stray, ()),
    "a run of a trainer": (lightning, ()),
    "a classifier of 3 labels": (
        lambda p: classifier(p, 3),
        ("--heads", "sequence_classification"),
    ),
    "no softmax": (without_softmax, ()),
    "no cutoffs": (without_cutoffs, ()),
    "a byte order mark": (marked, ()),
    "an untied output": (untied, ()),
    "scaled attention": (scaled, ()),
}


@pytest.mark.parametrize("what", HELD)
def test_models_in_the_wild_are_converted(what: str, tmp_path: Path, run: Any) -> None:
    make, words = HELD[what]
    make(tmp_path / "a")
    code, said = run("inspect", tmp_path / "a", *words)
    assert code == 0 and "refuses" not in said and "load reads" in said, said
    name = re.search(r"family: (\w+)", said)[1]  # type: ignore[index]
    options = {words[0][2:]: (words[1],)} if words else {}
    for to in ("transformers", "pytorch-pretrained-bert"):
        code, said = run("convert", tmp_path / "a", tmp_path / to, "--to", to, *words)
        if what == "an untied output" and to == "pytorch-pretrained-bert":
            assert code == 2 and "names the leaf output.table" in said  # its output is always tied
            continue
        assert code == 0, said
        module = BY_NAME[name].module
        assert_same(module.load(tmp_path / to), module.load(tmp_path / "a", **options))


# What is no file, or leads elsewhere.


@contextmanager
def at_once() -> Iterator[None]:
    """Fail where something takes more than a few seconds."""

    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def special(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket is short
            made.bind(path.name)
            os.chdir(here)
    else:
        path.symlink_to(kind)


SPECIAL = {  # a file of a folder, what is made special in it, and what is loaded
    "weights": ("bin", "pytorch_model.bin", "pytorch_model.bin"),
    "weights by another name": ("bin", "x.bin", "x.bin"),
    "weights without an end": ("bin", "x", "x"),
    "a shard": ("index", "model-0.safetensors", ""),
    "an index": ("index", "model.safetensors.index.json", "model.safetensors.index.json"),
    "an index of TensorFlow": ("bundle", "model.ckpt.index", "model.ckpt"),
    "data of TensorFlow": ("bundle", "model.ckpt.data-00000-of-00001", "model.ckpt"),
    "a note of TensorFlow": ("bundle", "checkpoint", "missing"),
    "a config": ("bin", "config.json", ""),
}


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero", "/dev/full", "/"])
@pytest.mark.parametrize("what", SPECIAL)
def test_special_files_are_refused_at_once(what: str, kind: str, tmp_path: Path, run: Any) -> None:
    form, name, path = SPECIAL[what]
    tensors = foreign(GPT2, "tensorflow" if form == "bundle" else "transformers")
    place = put(tmp_path / "a", GPT2, tensors, form)
    special(place / name, kind)
    with at_once(), little_memory(8 << 20):
        with pytest.raises((ValueError, OSError)) as caught:
            gpt2.load(place / path if path != "missing" else place / "none")
        assert str(tmp_path) in str(caught.value) or "is no directory" in str(caught.value)
        if path and path != "missing":
            with pytest.raises((ValueError, OSError)):
                io.read(place / path)
        if what == "a config":
            code, said = run("convert", tmp_path / "a", tmp_path / "b", "--config", place / name)
            assert code == 2 and "config.json" in said


def test_convert_follows_no_link_out_of_a_folder(tmp_path: Path, run: Any) -> None:
    (tmp_path / "secret").write_text('{"token": "a password"}')
    for number, name in enumerate(
        ("vocab.json", "encoder.json", "tokenizer_config.json", "config.json")
    ):
        place = put(tmp_path / f"a{number}", GPT2, foreign(GPT2, "transformers"))
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to("../secret")
        code, said = run("convert", place, tmp_path / f"b{number}")
        assert code == 2 and f"{name} is a link out of its folder" in said
        assert not (tmp_path / f"b{number}").exists()


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path, run: Any) -> None:
    home, blobs = tmp_path / "models--o--m" / "snapshots" / "5", tmp_path / "models--o--m" / "blobs"
    home.parent.mkdir(parents=True)
    put(home, GPT2, foreign(GPT2, "transformers"))
    (home / "vocab.json").write_text("{}")
    blobs.mkdir()
    for path in list(home.iterdir()):
        path.rename(blobs / f"b-{path.name}")
        path.symlink_to(f"../../blobs/b-{path.name}")
    code, said = run("convert", home, tmp_path / "b")
    assert code == 0 and "vocab.json" in said
    assert_same(gpt2.load(tmp_path / "b"), with_heads(GPT2, ()))


# Names that would do more to a terminal than show.

NAMES = [
    "\x1b[31mred\x07",
    "a\nfamily: bert",
    "\x9b2J",
    "\u202eabc",
    "tab\there",
    "\x7f",
    "\u2028x",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_of_files_reach_no_terminal_raw(name: str, tmp_path: Path, run: Any) -> None:
    place = put(tmp_path / "a", GPT2, foreign(GPT2, "transformers"))
    path = place / "pytorch_model.bin"
    save_file(torch.load(path) | {name: torch.ones(2)}, place / "model.safetensors")
    shown = repr(name)[1:-1]
    with pytest.raises(ValueError) as caught:
        gpt2.load(place)
    assert name not in str(caught.value) and shown in str(caught.value)
    for words in (("inspect", place), ("convert", place, tmp_path / "b")):
        _, said = run(*words)
        assert name not in said and shown in said
        assert all(c.isprintable() or c in "\n\t" for c in said)


def test_an_index_and_a_config_reach_no_terminal_raw(tmp_path: Path) -> None:
    place = put(tmp_path / "a", GPT2, foreign(GPT2, "transformers"), "index")
    index = place / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("wte.weight", "w\\u001b[31m"))
    with pytest.raises(ValueError) as caught:
        gpt2.load(place)
    assert "\x1b" not in str(caught.value) and "\\x1b[31m" in str(caught.value)
    (place / "config.json").write_text('{"model_type": "\\u001b[31m"}')
    with pytest.raises(ValueError) as caught:
        io.config_from(place / "config.json", gpt2.names.FAMILY, gpt2.Config)  # type: ignore[attr-defined]
    assert "\x1b" not in str(caught.value)


# What is small and says that it is large.


def test_an_archive_is_not_inflated_before_its_shapes_are_compared(tmp_path: Path) -> None:
    place = put(tmp_path, GPT2, {})
    (place / "pytorch_model.bin").unlink()
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4194304, 8), }"
    head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + head.ljust(117) + b"\n"
    with zipfile.ZipFile(place / "model.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("wte.weight.npy", "w", force_zip64=True) as file:
            file.write(head)
            for _ in range(8):
                file.write(bytes(1 << 24))
    with little_memory(4 << 20), pytest.raises(ValueError, match=r"more than its file has tensors"):
        gpt2.load(place)


def test_shapes_are_compared_before_a_tensor_is_read(tmp_path: Path) -> None:
    """In every format: no entry is read where one has another shape."""
    for form in ("bin", "npz", "index"):
        weights = foreign(GPT2, "transformers")
        weights["transformer.ln_f.bias"] = torch.ones(7)
        file = io.read(hub.locate(put(tmp_path / form, GPT2, weights, form)).weights)

        def never() -> Tensor:
            raise AssertionError("read")

        entries = {name: entry._replace(read=never) for name, entry in file.entries.items()}
        unread = type(file)(file.path, file.format, entries)
        with pytest.raises(ValueError, match=r"ln_f.bias.* has shape \[7\], expected \[36\]"):
            io.assemble(unread, GPT2.config, gpt2.names.FAMILY, gpt2.spec)  # type: ignore[attr-defined]


def test_a_stray_archive_is_not_what_was_meant(tmp_path: Path) -> None:
    arrays_and_a_stray(tmp_path / "a")
    assert hub.locate(tmp_path / "a").weights.name == "params_shapes.json"
    assert_same(gpt.load(tmp_path / "a"), with_heads(GPT, ()))
    other = hub.locate(tmp_path / "a" / "notes.npz", config_required=False)
    assert other.weights.name == "notes.npz"


def test_the_file_that_is_named_is_read(tmp_path: Path) -> None:
    """Whatever else its folder holds."""
    one, two = make_params(GPT2, 1), make_params(GPT2, 2)
    gpt2.save(one, tmp_path)
    gpt2.save(two, tmp_path / "b")
    save_file(load_file(tmp_path / "b" / "model.safetensors"), tmp_path / "other.safetensors")
    torch.save(load_file(tmp_path / "b" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert_same(gpt2.load(tmp_path), one)
    for name in ("other.safetensors", "pytorch_model.bin"):
        assert_same(gpt2.load(tmp_path / name), two)


def test_a_bert_of_tensorflow_is_shown(tmp_path: Path, run: Any) -> None:
    slots(tmp_path / "a")
    assert "family: bert" in run("inspect", tmp_path / "a" / "model.ckpt")[1]
    assert_same(
        bert.load(tmp_path / "a"), with_heads(BERT, ("masked_lm", "next_sentence_prediction"))
    )
