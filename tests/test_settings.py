"""Every key of the peers' configs is heeded, harmless or refused, and is what it is said to be."""

import dataclasses
import inspect
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_type_hints

import pytest
import torch
from families import BERT, FAMILIES, GPT, GPT2, TRANSFO_XL, make_params
from peers import hf, ppb, quiet
from test_transfo_xl_parity import make_config, make_pair
from torch import Tensor

from fnlm import bert, gpt, gpt2, random, transfo_xl, tree
from fnlm.families import FAMILIES as RECORDS
from fnlm.params.config import Rate
from fnlm.params.names import Family

TABLES: dict[str, Family] = {name: record.names for name, record in RECORDS.items()}
CONFIGS: dict[str, Any] = {name: record.module.Config for name, record in RECORDS.items()}
IDS = torch.randint(40, (2, 3, 6), generator=torch.Generator().manual_seed(1))
AT = torch.tensor([[5, 3, 0], [1, 2, 4]])


class Peer(NamedTuple):
    """A class of transformers, small, and the values of keys that change what it computes."""

    module: ModuleType
    config: str
    name: str  # of the class
    small: dict[str, Any]
    heeded: dict[str, Any]


CAUSAL: dict[str, Any] = {
    "vocab_size": 45, "n_positions": 9, "n_embd": 18, "n_layer": 1, "n_head": 2,
    "layer_norm_epsilon": 0.3, "summary_activation": "tanh", "tie_word_embeddings": False,
}  # fmt: skip
SIZES = {"vocab_size": 41, "n_positions": 12, "n_embd": 12, "n_layer": 2, "n_head": 3}
PEERS = {
    "bert": Peer(
        bert,
        "BertConfig",
        "BertForSequenceClassification",
        {
            "vocab_size": 41, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 10, "max_position_embeddings": 12, "type_vocab_size": 2,
        },
        {
            "vocab_size": 45, "hidden_size": 18, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 7, "hidden_act": "relu", "max_position_embeddings": 9,
            "type_vocab_size": 4, "layer_norm_eps": 0.3, "num_labels": 5,
        },
    ),
    "gpt2": Peer(
        gpt2,
        "GPT2Config",
        "GPT2DoubleHeadsModel",
        {**SIZES, "bos_token_id": 0, "eos_token_id": 0},
        {
            **CAUSAL, "n_inner": 7, "activation_function": "relu", "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
    "gpt": Peer(
        gpt, "OpenAIGPTConfig", "OpenAIGPTDoubleHeadsModel", SIZES, {**CAUSAL, "afn": "relu"}
    ),
}  # fmt: skip
# Heeded keys that no deterministic output shows, and the test that does.
DRAWN = {
    "bert": {
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        "initializer_range",
    },
    "gpt": {
        "embd_pdrop", "attn_pdrop", "resid_pdrop", "summary_first_dropout", "initializer_range",
    },
    "transfo_xl": {"dropout", "dropatt", "init", "init_range", "proj_init_std", "init_std"},
}  # fmt: skip
DRAWN["gpt2"] = DRAWN["gpt"]
# Fields that change no number: the file keeps them.
KEPT = {
    "gpt": {"n_ctx"},
    "gpt2": {"n_ctx"},
    "bert": {"pad_token_id"},  # the row that fine-tuning leaves alone
    "transfo_xl": {"tgt_len", "adaptive"},  # of the published training script
}
# Keys that earlier versions of transformers wrote into any file.
EARLIER = """
bad_words_ids cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
early_stopping finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
is_encoder_decoder length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
output_scores prefix pruned_heads remove_invalid_values repetition_penalty return_dict
return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript typical_p use_bfloat16
use_cache tf_legacy_loss begin_suppress_tokens encoder_no_repeat_ngram_size _num_labels
exponential_decay_length_penalty quantization_config
""".split()
OF_A_FAMILY = {
    "bert": ["position_embedding_type"],
    "gpt": ["predict_special_tokens", "n_special", "n_ctx", "summary_last_dropout"],
    "gpt2": ["predict_special_tokens", "n_ctx", "n_vocab", "summary_last_dropout"],
    "transfo_xl": ["vocab_size", "tie_word_embeddings", "proj_same_dim", "layer_norm_epsilon"],
}


def config_class(name: str) -> Any:
    """The config of transformers of a family, by its model_type."""
    return type(hf().AutoConfig.for_model(TABLES[name].name))


def peer_keys(name: str) -> set[str]:
    """All keys that a peer writes into a config.json of the family."""
    if name == "transfo_xl":
        with quiet():
            keys = set(ppb().TransfoXLConfig(50).to_dict())
    else:
        kind = config_class(name)
        keys = {*kind().to_dict(), *inspect.signature(kind).parameters, *kind.attribute_map}
        keys -= {"kwargs"}
    return keys | {*EARLIER, *OF_A_FAMILY.get(name, ())}


KEYS = [(name, key) for name in TABLES for key in sorted(peer_keys(name))]


def homes(name: str, key: str) -> list[str]:
    """Where our tables have a key."""
    tables, kind = TABLES[name], CONFIGS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    heads = tables.required_by_head.values()
    return [
        *["field"] * (key in fields or kind.aliases.get(key) in fields),
        *["refused"] * (key in tables.required or any(key in head for head in heads)),
        *["harmless"] * (key in tables.harmless),
    ]


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_every_key_of_the_peers_is_heeded_harmless_or_refused(name: str, key: str) -> None:
    assert len(homes(name, key)) == 1, f"{key} is in {homes(name, key) or 'no table'}"


@pytest.mark.parametrize("name", [*PEERS, "transfo_xl"])
def test_every_field_is_shown_to_count_or_said_not_to(name: str) -> None:
    """No field escapes the tests below."""
    fields = {field.name for field in dataclasses.fields(CONFIGS[name])} - {"extra"}
    shown = {*PEERS[name].heeded} if name in PEERS else {key for key, _ in TRANSFO_XL_CHANGES}
    special = {"n_special"} if name == "gpt" else set()  # tests/test_gpt_parity.py
    assert fields == shown | DRAWN[name] | KEPT[name] | special


def module_of(name: str, changes: dict[str, Any]) -> Any:
    """A peer with random weights, every run the same."""
    peer = PEERS[name]
    torch.manual_seed(0)
    config = getattr(hf(), peer.config)(**peer.small | changes, attn_implementation="eager")
    module = getattr(hf(), peer.name)(config).eval()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5)
    module.tie_weights()
    return module


def answers(name: str, module: Any) -> list[Tensor]:
    with torch.no_grad():
        if name == "bert":
            return [module(IDS[0], attention_mask=torch.ones_like(IDS[0])).logits]
        made = module(IDS, mc_token_ids=AT)
        return [made.logits, made.mc_logits]


def our_answers(name: str, params: Any) -> list[Tensor]:
    if name == "bert":
        return [bert.sequence_classification(params, IDS[0])]
    return [*PEERS[name].module.double_heads(params, IDS, AT)[:2]]


@cache
def usual(name: str) -> list[Tensor]:
    return answers(name, module_of(name, {}))


HEEDED = [(name, key) for name, peer in PEERS.items() for key in peer.heeded]


@pytest.mark.parametrize(("name", "key"), HEEDED)
def test_a_heeded_key_counts_as_it_does_for_the_peer(name: str, key: str, tmp_path: Path) -> None:
    module = module_of(name, {key: PEERS[name].heeded[key]})
    expected = answers(name, module)
    module.save_pretrained(tmp_path)
    params = PEERS[name].module.load(tmp_path)
    for ours, theirs in zip(our_answers(name, params), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    sizes = ("n_positions", "max_position_embeddings", "type_vocab_size")
    if key not in sizes:  # the longer table is the same where it is read
        pairs = zip(expected, usual(name), strict=True)
        assert any(x.shape != y.shape or not x.allclose(y, atol=1e-3) for x, y in pairs)
    PEERS[name].module.save(params, tmp_path / "again")
    again = PEERS[name].module.load(tmp_path / "again")
    assert again["config"] == params["config"]
    for x, y in zip(our_answers(name, again), our_answers(name, params), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)
    theirs = type(module).from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    for x, y in zip(answers(name, theirs), expected, strict=True):
        torch.testing.assert_close(x, y)


TRANSFO_XL_CHANGES: list[tuple[str, Any]] = [
    ("n_token", 45), ("cutoffs", (9,)), ("d_model", 24), ("d_embed", 16), ("n_head", 2),
    ("d_head", 6), ("d_inner", 7), ("div_val", 3), ("pre_lnorm", True), ("n_layer", 1),
    ("mem_len", 3), ("clamp_len", 2), ("same_length", False), ("untie_r", False),
    ("tie_weight", False), ("proj_share_all_but_first", False), ("tie_projs", (True, False, True)),
    ("ext_len", 2), ("layer_norm_epsilon", 0.3), ("proj_same_dim", False), ("attn_type", 1),
    ("sample_softmax", 5),
]  # fmt: skip
OURS_ALONE = {"layer_norm_epsilon", "proj_same_dim", "attn_type", "sample_softmax"}


@pytest.mark.parametrize(
    ("key", "value"), [c for c in TRANSFO_XL_CHANGES if c[0] not in OURS_ALONE]
)
def test_a_heeded_key_of_transfo_xl_counts_as_for_pytorch_pretrained_bert(
    key: str, value: Any
) -> None:
    def run(config: transfo_xl.Config) -> tuple[list[Tensor], list[Tensor]]:
        params, module = make_pair(config, torch.float32)
        found: list[Tensor] = []
        expected: list[Tensor] = []
        mems, theirs = None, None
        for ids in IDS[0, :2].split(3, -1):
            with torch.no_grad():
                scores, theirs = module(ids.contiguous(), mems=theirs)
            ours, mems = transfo_xl.apply(params, ids, mems)
            found, expected = [*found, ours], [*expected, scores]
        return found, expected

    found, expected = run(make_config(**{key: value}))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    pairs = zip(expected, run(make_config())[1], strict=True)
    assert any(x.shape != y.shape or not x.allclose(y, atol=1e-4) for x, y in pairs)


def test_fields_of_transfo_xl_that_pytorch_pretrained_bert_lacks_count() -> None:
    ids = IDS[0]
    usual, _ = transfo_xl.apply(make_params(TRANSFO_XL), ids)
    config = make_config(layer_norm_epsilon=0.3)
    changed, _ = transfo_xl.apply(make_params(TRANSFO_XL._replace(config=config)), ids)
    assert not changed.allclose(usual, atol=1e-3)
    config = make_config(proj_same_dim=False, d_embed=36)
    assert "projection" not in transfo_xl.spec(config)["embed"]["cluster_0"]
    with pytest.raises(ValueError, match="attn_type=1"):
        make_config(attn_type=1)
    config = make_config(sample_softmax=5, cutoffs=(), div_val=1)
    params = transfo_xl.init(config, random.key(0))
    key = random.key(1)
    sampled, _ = transfo_xl.negative_log_likelihood(params, ids, ids, key=key)
    params["config"] = dataclasses.replace(config, sample_softmax=-1)
    whole, _ = transfo_xl.negative_log_likelihood(params, ids, ids, key=key)
    assert not sampled.allclose(whole, atol=1e-2)


def rates_of(kind: type) -> set[str]:
    """The fields of a config that are rates of dropouts."""
    types = get_type_hints(kind, include_extras=True)
    return {name for name, field_type in types.items() if field_type == Rate}


RATES = [
    (family, key)
    for family in FAMILIES
    for key in sorted(DRAWN.get(family.name, rates_of(CONFIGS[family.name])))
    if key not in ("init", "init_range", "init_std", "proj_init_std", "initializer_range")
]


@pytest.mark.parametrize(("family", "key"), RATES, ids=lambda x: getattr(x, "name", x))
def test_a_rate_counts_where_there_is_a_key(family: Any, key: str) -> None:
    params = make_params(family)

    def outputs(rate: float, seed: Any) -> list[Tensor]:
        changed = dataclasses.replace(family.config, **{key: rate})
        made = params | {"config": changed}
        task = {"bert": "sequence_classification", "transfo_xl": "apply"}
        run = family.tasks[task.get(family.name, [*family.tasks][-1])]
        return [x for x in tree.leaves(run(made, IDS[0], key=seed)) if x.is_floating_point()]

    def equal(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(x.equal(y) for x, y in zip(a, b, strict=True))

    seed = random.key(4)
    assert not equal(outputs(0.6, seed), outputs(0.0, seed))
    assert equal(outputs(0.6, None), outputs(0.0, None))


SCALES = [
    *((family, "initializer_range", {}) for family in (BERT, GPT, GPT2)),
    (TRANSFO_XL, "init_std", {}),
    (TRANSFO_XL, "proj_init_std", {}),
    (TRANSFO_XL, "init_range", {"init": "uniform"}),
]


@pytest.mark.parametrize(("family", "key", "more"), SCALES, ids=lambda x: getattr(x, "name", x))
def test_a_scale_of_the_initial_weights_scales_them(family: Any, key: str, more: Any) -> None:
    def start(scale: float) -> Any:
        config = dataclasses.replace(family.config, **more, **{key: scale})
        return family.module.init(config, random.key(0))

    one, two = start(0.1), start(0.2)
    ratios = {
        round(float(y.abs().sum() / x.abs().sum()), 4)
        for x, y in zip(tree.leaves(one), tree.leaves(two), strict=True)
        if x.abs().sum()
    }
    assert 2.0 in ratios and ratios <= {1.0, 2.0}


# Another value of each harmless key; others become a text.
OTHER_VALUES: dict[str, Any] = {
    "architectures": ["X"], "bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 3,
    "chunk_size_feed_forward": 2, "dtype": "float64", "id2label": {0: "a", 1: "b"},
    "label2id": {"a": 0, "b": 1}, "output_attentions": True, "output_hidden_states": True,
    "problem_type": "regression", "return_dict": True, "use_cache": False,
    "reorder_and_upcast_attn": True, "num_labels": 2, "sep_token_id": 3,
    "task_specific_params": {"a": 1}, "pruned_heads": {},
}  # fmt: skip
HARMLESS = [
    (name, key)
    for name in PEERS
    for key in sorted({*TABLES[name].harmless} & peer_keys(name) | KEPT[name] - {"n_ctx"})
    if key not in ("model_type", "_num_labels", "torch_dtype")
    and (name == "gpt2" or key not in TABLES["gpt2"].harmless)  # one class has them for all
]


@pytest.mark.parametrize(("name", "key"), HARMLESS)
def test_a_harmless_key_changes_no_number_of_the_peer(name: str, key: str, tmp_path: Path) -> None:
    module = module_of(name, {key: OTHER_VALUES.get(key, "x")})
    for found, expected in zip(answers(name, module), usual(name), strict=True):
        torch.testing.assert_close(found, expected)
    content = PEERS[name].small | {key: OTHER_VALUES.get(key, "x")}
    if key != "architectures":
        again = CONFIGS[name].from_dict(content).to_dict()
        assert json.loads(json.dumps(again[key])) == json.loads(json.dumps(content[key]))


WRONG: dict[str, Any] = {
    "pruned_heads": {"0": [1]}, "quantization_config": {"bits": 8}, "summary_type": "mean",
    "position_embedding_type": "relative_key", "summary_last_dropout": 0.1,
}  # fmt: skip
REFUSED = [(family, (), key) for family in FAMILIES for key in family.names.required] + [
    (family, (head,), key)
    for family in FAMILIES
    for head, keys in family.names.required_by_head.items()
    for key in keys
]


@pytest.mark.parametrize(("family", "heads", "key"), REFUSED, ids=lambda x: getattr(x, "name", x))
def test_a_refused_key_is_refused_by_name(
    family: Any, heads: Any, key: str, tmp_path: Path
) -> None:
    module, tables = family.module, family.names
    params = module.init(family.config, random.key(0), heads)
    module.save(params, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    usual = (tables.required if not heads else tables.required_by_head[heads[0]])[key]
    path.write_text(json.dumps(content | {key: usual}))
    module.load(tmp_path)
    path.write_text(json.dumps(content | {key: WRONG.get(key, not usual)}))
    with pytest.raises(ValueError, match=key) as caught:
        module.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and repr(usual) in str(caught.value)
    if heads:  # of no account without the head
        module.load(tmp_path, heads=())


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_the_peers_other_names_of_fields_are_read(name: str, tmp_path: Path) -> None:
    module, peer = module_of(name, {}), PEERS[name]
    names = type(module.config).attribute_map
    assert names.items() <= CONFIGS[name].aliases.items()
    module.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for other, field in names.items():
        path.write_text(json.dumps({k: v for k, v in content.items() if k != field}
                                   | {other: content[field]}))  # fmt: skip
        assert peer.module.load(tmp_path)["config"] == CONFIGS[name].from_dict(content)
        path.write_text(json.dumps(content | {other: content[field] + 6}))
        with pytest.raises(ValueError, match=f"{field}=.*{other}="):
            peer.module.load(tmp_path)
