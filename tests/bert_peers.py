"""BERT beside its peers: a model of both with the same parameters, outputs and gradients."""

from typing import Any, NamedTuple

import torch
from families import BERT, make_batch, make_params
from peers import hf, ppb, quiet
from torch import Tensor
from torch.func import grad

from fnlm import bert, tree
from fnlm.params import _rename
from fnlm.params.module import from_module
from fnlm.params.names import Family as Names
from fnlm.params.names.bert import FAMILY

PEERS = ("transformers", "pytorch-pretrained-bert")
CLASSES = {
    "apply": "BertModel",
    "layers": "BertModel",
    "pretraining": "BertForPreTraining",
    "masked_lm": "BertForMaskedLM",
    "next_sentence_prediction": "BertForNextSentencePrediction",
    "sequence_classification": "BertForSequenceClassification",
    "multiple_choice": "BertForMultipleChoice",
    "token_classification": "BertForTokenClassification",
    "question_answering": "BertForQuestionAnswering",
}
HEADS = {name: heads for heads, name in FAMILY.architectures.items()}
PRECISION = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def make_config(**changes: Any) -> bert.Config:
    """The config of the table with five labels, and pytorch-pretrained-bert's only eps."""
    changes = {"layer_norm_eps": 1e-12, "num_labels": 5} | changes
    return bert.Config.from_dict(BERT.config.to_dict() | changes)


def make(config: bert.Config, variant: str, dtype: torch.dtype) -> Any:
    """Parameters with the heads of a variant alone."""
    params = make_params(BERT._replace(config=config), dtype=dtype)
    heads = {head: params["heads"][head] for head in HEADS[CLASSES[variant]]}
    base = {name: leaves for name, leaves in params.items() if name != "heads"}
    return {**base, "heads": heads} if heads else base


class Peer(NamedTuple):
    """A function of our parameters, and its gradient under our names."""

    library: str
    variant: str
    apply: Any
    names: list[str]
    table: Names

    def params(self, ours: Any) -> Any:
        """Our parameters under the peer's names, those it lacks left out."""
        dialect = next(d for d in self.table.dialects if d.name == self.library)
        leaves = {name: leaf for name, leaf in ours.items() if name != "config"}
        foreign = _rename.to_foreign(leaves, dialect)
        return _rename.nest({name: foreign[name] for name in self.names})

    def run(self, theirs: Any, ids: Tensor, types: Tensor | None, mask: Tensor | None) -> tuple:
        """What the peer returns, as a tuple of what our function of the variant returns."""
        options: dict[str, Any] = {} if mask is None else {"attention_mask": mask.long()}
        if self.library != "transformers":
            result = self.apply(theirs, ids, types, *options.values())
            if self.variant == "layers":
                return tuple(result[0])
            if self.variant == "apply":
                return result[0][-1], result[1]
            return result if isinstance(result, tuple) else (result,)
        if self.variant == "layers":
            options["output_hidden_states"] = True
        result = self.apply(theirs, ids, token_type_ids=types, **options)
        return result.hidden_states[1:] if self.variant == "layers" else tuple(result.values())

    def named(self, gradient: Any) -> dict[str, Tensor]:
        """A gradient under our names."""
        leaves = dict(tree.named_leaves(gradient))
        found, unexpected = _rename.from_foreign(leaves, self.table, self.library)
        assert not unexpected
        return found


def make_peer(
    library: str,
    variant: str,
    config: bert.Config,
    dtype: torch.dtype,
    *,
    stops_padding: bool = False,
) -> Peer:
    """Make a peer, with the `padding_idx` that stops the gradient by [PAD] only if asked."""
    name, content = CLASSES[variant], config.to_dict()
    if library == "transformers":
        module = getattr(hf(), name)(hf().BertConfig(**content))
    else:
        extra = {
            "sequence_classification": [config.num_labels],
            "token_classification": [config.num_labels],
            "multiple_choice": [2],
        }
        with quiet():
            own = ppb().BertConfig.from_dict(content)
            module = getattr(ppb(), name)(own, *extra.get(variant, ()))
    for part in module.modules():
        if isinstance(part, torch.nn.Embedding) and not stops_padding:
            part.padding_idx = None
    apply, theirs = from_module(module.to(dtype).eval())
    names = [name for name, _ in tree.named_leaves(theirs)]
    return Peer(library, variant, apply, names, _rename.for_heads(FAMILY, HEADS[name]))


def inputs(config: bert.Config, variant: str, *, rows: int = 3, length: int = 7) -> list[Tensor]:
    """Ids, token types, and a mask: rows whole, left-padded and right-padded in turn."""
    ids, mask = make_batch(BERT._replace(config=config), rows, length)
    if variant == "multiple_choice":
        ids, mask = torch.stack([ids, ids.flip(0)], 1), torch.stack([mask, mask.flip(0)], 1)
    return [ids, torch.randint(config.type_vocab_size, ids.shape), mask]


def run_ours(variant: str, params: Any, *data: Tensor | None) -> tuple[Tensor, ...]:
    result = getattr(bert, variant)(params, *data)
    return result if isinstance(result, tuple) else (result,)


def weighted(outputs: tuple[Tensor, ...]) -> Tensor:
    """A scalar of random weights, so that no gradient cancels."""
    generator = torch.Generator().manual_seed(1)
    return sum(
        ((y * torch.randn(y.shape, generator=generator).to(y.dtype)).mean() for y in outputs),
        torch.zeros(()),
    )


def compare(
    library: str, variant: str, config: bert.Config, dtype: torch.dtype, tolerance: float, *x: Any
) -> None:
    """Outputs, and gradients of every leaf that the peer has."""
    params, peer = make(config, variant, dtype), make_peer(library, variant, config, dtype)
    theirs = peer.params(params)
    for a, b in zip(run_ours(variant, params, *x), peer.run(theirs, *x), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    ours = grad(lambda p: weighted(run_ours(variant, p, *x)))(params)
    mine = dict(tree.named_leaves(ours))
    found = peer.named(grad(lambda p: weighted(peer.run(p, *x)))(theirs))
    assert {path for path in mine if not path.startswith("pooler")} <= set(found) <= set(mine)
    for path, gradient in found.items():
        torch.testing.assert_close(mine[path], gradient, atol=tolerance, rtol=tolerance, msg=path)
