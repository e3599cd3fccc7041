"""Files that say less, or more, than their config: what one lacks the other tells, or an error."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import BERT, FAMILIES, GPT2, TRANSFO_XL, Family, make_params, with_heads

from fnlm import bert, cli, gpt2, pipeline, random, transfo_xl, tree
from fnlm.generate import generate
from fnlm.tokenize import gpt2 as words

IDS = torch.tensor([[1, 12, 30, 40]])
TOKENIZER = words.train(["the king said the king and the queen"], 270)
CONFIG = gpt2.Config(
    vocab_size=TOKENIZER.vocab_size, n_positions=24, n_embd=12, n_layer=1, n_head=2
)


def rewrite(folder: Path, *left_out: str, **changes: Any) -> None:
    """Change the config.json of a folder."""
    path = folder / "config.json"
    content = {k: v for k, v in json.loads(path.read_text()).items() if k not in left_out}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize("labels", [1, 2, 3, 7])
@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
@pytest.mark.parametrize("named", [True, False])
def test_labels_that_a_config_does_not_count_are_those_of_the_head(
    labels: int, head: str, named: bool, tmp_path: Path
) -> None:
    """pytorch-pretrained-bert's classifiers: the number was an argument of their class."""
    row = BERT._replace(config=dataclasses.replace(BERT.config, num_labels=labels))
    params = with_heads(row, (head,))
    bert.save(params, tmp_path, dialect="pytorch-pretrained-bert")
    rewrite(tmp_path, "num_labels", "model_type", *["architectures"] * (not named))
    loaded = bert.load(tmp_path, heads=None if named else (head,))
    assert loaded["config"].num_labels == labels
    assert getattr(bert, head)(loaded, IDS).equal(getattr(bert, head)(params, IDS))
    rewrite(tmp_path, num_labels=labels + 1)  # what a config says must be so
    with pytest.raises(ValueError, match=rf"classifier.*\[{labels}\], expected \[{labels + 1}\]"):
        bert.load(tmp_path, heads=(head,))


def test_the_scores_of_choices_are_no_labels(tmp_path: Path) -> None:
    bert.save(with_heads(BERT, ("multiple_choice",)), tmp_path)
    rewrite(tmp_path, "num_labels")
    assert bert.load(tmp_path)["config"].num_labels == 2


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_one_head_may_be_given_as_a_word(family: Family, tmp_path: Path) -> None:
    module = family.module
    for head in module.HEADS:
        word = module.init(family.config, random.key(0), head)
        listed = module.init(family.config, random.key(0), [head])
        assert tree.structure(word) == tree.structure(listed)
        module.save(word, tmp_path / head)
        loaded = module.load(tmp_path / head, heads=head)
        assert tree.structure(loaded) == tree.structure(word)
    with pytest.raises(ValueError, match=r"heads=\('classify',\): \['classify'\] not among"):
        module.init(family.config, random.key(0), "classify")
    module.save(module.init(family.config, random.key(0)), tmp_path)
    with pytest.raises(ValueError, match=r"\['classify'\] not among"):
        module.load(tmp_path, heads="classify")


@pytest.mark.parametrize("dialect", ["transformers", "pytorch-pretrained-bert"])
def test_transfo_xl_without_its_softmax(dialect: str, tmp_path: Path) -> None:
    """pytorch-pretrained-bert's base class."""
    whole = make_params(TRANSFO_XL)
    base = {name: part for name, part in whole.items() if name != "softmax"}
    transfo_xl.save(base, tmp_path, dialect=dialect)
    loaded = transfo_xl.load(tmp_path)
    assert "softmax" not in loaded
    hidden, mems = transfo_xl.hidden_states(loaded, IDS)
    assert hidden.equal(transfo_xl.hidden_states(whole, IDS)[0])
    assert transfo_xl.hidden_states(loaded, IDS, mems)[0].shape == hidden.shape
    for call in (
        lambda: transfo_xl.apply(loaded, IDS),
        lambda: transfo_xl.negative_log_likelihood(loaded, IDS, IDS),
    ):
        with pytest.raises(KeyError, match="no 'softmax'.*hidden_states"):
            call()
    transfo_xl.save(loaded, tmp_path / "again", dialect=dialect)
    assert tree.structure(transfo_xl.load(tmp_path / "again")) == tree.structure(loaded)


@pytest.mark.parametrize("changes", [{}, {"div_val": 1, "cutoffs": ()}, {"cutoffs": (20,)}])
def test_cutoffs_that_a_config_lacks_are_those_of_the_tables(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    row = TRANSFO_XL._replace(config=dataclasses.replace(TRANSFO_XL.config, **changes))
    params = make_params(row)
    transfo_xl.save(params, tmp_path)
    rewrite(tmp_path, "cutoffs")
    loaded = transfo_xl.load(tmp_path)
    assert loaded["config"] == params["config"]
    assert transfo_xl.apply(loaded, IDS)[0].equal(transfo_xl.apply(params, IDS)[0])


def test_cutoffs_that_cannot_be_inferred_are_asked_for(tmp_path: Path) -> None:
    config = dataclasses.replace(TRANSFO_XL.config, div_val=1)
    transfo_xl.save(make_params(TRANSFO_XL._replace(config=config)), tmp_path)
    rewrite(tmp_path, "cutoffs")
    with pytest.raises(ValueError, match='config.json: no cutoffs.*add "cutoffs" with 2') as caught:
        transfo_xl.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_untied_model_without_its_output(tmp_path: Path) -> None:
    """GPT2Model of transformers."""
    config = dataclasses.replace(GPT2.config, tie_word_embeddings=False)
    whole = with_heads(GPT2._replace(config=config), ())
    base = {name: part for name, part in whole.items() if name != "output"}
    gpt2.save(base, tmp_path)
    loaded = gpt2.load(tmp_path)
    assert gpt2.hidden_states(loaded, IDS)[0].equal(gpt2.hidden_states(whole, IDS)[0])
    with pytest.raises(KeyError, match=r"output.table.*tie_word_embeddings=False"):
        gpt2.apply(loaded, IDS)
    with pytest.raises(ValueError, match=r"pytorch-pretrained-bert names the leaf output.table"):
        gpt2.save(whole, tmp_path, dialect="pytorch-pretrained-bert")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_config_may_begin_with_a_byte_order_mark(family: Family, tmp_path: Path) -> None:
    params = make_params(family)
    family.module.save({k: v for k, v in params.items() if k != "heads"}, tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert family.module.load(tmp_path, heads=())["config"] == params["config"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"n_layer": 2, "n_layer": 3}', "'n_layer' twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' twice"),
        ("[" * 100_000, "too deep"),
        ('{"a": ' + "[" * 90 + "]" * 90 + "}", "too deep"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"n_layer": 10000000}', "n_layer=10000000, more than its file has tensors"),
        ('{"n_embd": NaN}', "n_embd must be an integer of at least 1, got nan"),
        ('{"embd_pdrop": 7}', "embd_pdrop must be a number from 0 to 1, got 7"),
        ('{"layer_norm_epsilon": Infinity}', "layer_norm_epsilon must be a number"),
        ('{"n_head": true}', "n_head must be an integer of at least 1, got True"),
        ('{"tie_word_embeddings": 0}', "tie_word_embeddings must be true or false, got 0"),
        ('{"n_inner": "x"}', "n_inner must be an integer of at least 1 or null, got 'x'"),
        ('{"architectures": "GPT2LMHeadModel"}', "architectures must be a list"),
        ('{"model_type": ["gpt2"]}', "of family"),
        ("\x00", "is not JSON"),
        ("", "is not JSON"),
        ('{"a": "' + "x" * 2**23 + '"}', "no config.json has more"),
    ],
    ids=range(17),
)
def test_errors_in_a_config_are_named(text: str, said: str, tmp_path: Path) -> None:
    gpt2.save(with_heads(GPT2, ()), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        gpt2.load(tmp_path)
    assert said in str(caught.value) and str(tmp_path / "config.json") in str(caught.value)


def test_unknown_keys_and_odd_numbers_survive(tmp_path: Path) -> None:
    gpt2.save(with_heads(GPT2, ()), tmp_path)
    rewrite(tmp_path, model_type=None, other={"a": [1, None]}, penalty=float("inf"))
    config = gpt2.load(tmp_path)["config"]
    assert config.to_dict()["other"] == {"a": [1, None]}
    assert config.to_dict()["penalty"] == float("inf")
    assert hash(config) == hash(GPT2.config) and config == GPT2.config


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    numbers: dict[str, Any] = {"n_layer": np.int64(3), "n_head": torch.tensor(4)}
    config = gpt2.Config(**numbers, embd_pdrop=float(np.float32(0.5)))
    assert (config.n_layer, config.embd_pdrop, config.n_head) == (3, 0.5, 4)
    assert {type(config.n_layer), type(config.n_head)} == {int}


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """A model with 30 rows more than tokens, and these score highest."""
    params = gpt2.init(CONFIG, random.key(0))
    table = params["embed"]["token"]
    more = 50 * table.mean(0, keepdim=True).expand(30, -1) + 3 * torch.randn(30, table.shape[1])
    params["embed"]["token"] = torch.cat([table, more])
    config = dataclasses.replace(params["config"], vocab_size=len(table) + 30)
    gpt2.save(params | {"config": config}, tmp_path)
    TOKENIZER.save(tmp_path)
    return tmp_path


def test_rows_that_pad_a_vocabulary_are_never_chosen(padded: Path) -> None:
    made = pipeline.load(padded)
    rows = TOKENIZER.vocab_size
    ids = torch.tensor([made.encode("the king")])
    free = generate(gpt2.apply, made.params, ids, 6, key=random.key(0), temperature=5.0)
    assert bool((free >= rows).any()), "the model must be one that would choose them"
    held = generate(made.apply, made.params, ids, 6, key=random.key(0), temperature=5.0)
    assert bool((held < rows).all())
    for beams in (1, 3):
        text = "".join(
            cli.generate(str(padded), "the king", max_new_tokens=6, num_beams=beams, seed=1)
        )
        assert text.startswith("the king")


def test_a_vocabulary_larger_than_the_table_is_named(padded: Path) -> None:
    params = gpt2.load(padded)
    params["embed"]["token"] = params["embed"]["token"][:200]
    config = dataclasses.replace(params["config"], vocab_size=200)
    gpt2.save(params | {"config": config}, padded)
    with pytest.raises(ValueError, match=rf"{TOKENIZER.vocab_size} tokens, the model 200"):
        pipeline.load(padded)
