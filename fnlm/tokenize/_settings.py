"""The settings beside a vocabulary: each is applied, harmless, or refused by name.

The settings are those of `transformers` and of pytorch-pretrained-BERT. What neither knows changes
no ids there, and none here.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fnlm.tokenize import _files
from fnlm.tokenize._bpe import well_formed
from fnlm.tokenize._files import shown
from fnlm.tokenize.added import Added

# In the order in which `transformers` gives new ids to those that a vocabulary lacks.
NAMED = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
LISTED = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
ROWS = "added_tokens_decoder"
_CUTS, _PADS = "`encode` cuts nothing off", "`encode` pads nothing"
_DECODES, _CHAT = "it is for decoding", "it is for chats"
_ORIGIN = "it says where the tokenizer was; the files that were found are read"

HARMLESS = {
    "model_max_length": _CUTS, "max_len": _CUTS, "max_length": _CUTS, "stride": _CUTS,
    "truncation_side": _CUTS, "truncation_strategy": _CUTS, "tokenizer_truncation": _CUTS,
    "_json_truncation": _CUTS,
    "padding_side": _PADS, "pad_token_type_id": _PADS, "pad_to_multiple_of": _PADS,
    "tokenizer_padding": _PADS, "_json_padding": _PADS,
    "errors": _DECODES, "clean_up_tokenization_spaces": _DECODES,
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": _DECODES,
    "chat_template": _CHAT, "response_template": _CHAT, "response_schema": _CHAT,
    "chat_control_tokens": _CHAT,
    "name_or_path": _ORIGIN, "vocab_file": _ORIGIN, "merges_file": _ORIGIN,
    "tokenizer_file": _ORIGIN, "files_loaded": _ORIGIN, "is_local": _ORIGIN,
    "local_files_only": _ORIGIN, "processor_class": _ORIGIN, "backend": _ORIGIN,
    "model_input_names": "it names the arrays of a batch",
    "verbose": "it is about messages",
    "tokenizer": "it is an object of a running program",
    "trust_remote_code": "no code is run",
    "unk_id": "no tokenizer read here has one",
    "_spm_precompiled_charsmap": "no tokenizer read here has one",
}  # fmt: skip
# A value other than these is refused.
REFUSED: dict[str, tuple[Any, ...]] = {
    "split_special_tokens": (None, False),
    "add_bos_token": (None, False),
    "add_eos_token": (None, False),
    "do_basic_tokenize": (None, True),
    "wordpieces_prefix": (None, "##"),
    "clean_text": (None, True),
    "fix_mistral_regex": (None, False),
    "auto_map": (None,),
    "init_inputs": (None, [], ()),
    "fast_tokenizer_files": (None, []),
    "gguf_file": (None,),
    "vocab": (None,),
    "merges": (None,),
    "post_processor": (None,),
    "tokenizer_object": (None,),
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Family(NamedTuple):
    """The settings of a family of tokenizers."""

    name: str
    classes: Collection[str]  # values of tokenizer_class
    heeded: Mapping[str, tuple[str, Any]]  # their name -> that of our argument, and its type
    special: Collection[str] = ()  # special tokens of these names need not be called so


class Row(NamedTuple):
    """An added token as a file has it."""

    token: Added
    token_id: int | None  # None if the file gives none
    where: str


class Metadata(NamedTuple):
    """The settings and added tokens in the files beside a vocabulary."""

    settings: dict[str, Any]  # arguments of the tokenizer
    named: dict[str, str]  # such as "unk_token" -> the token
    vocab: dict[str, int]  # with the added tokens
    added: dict[str, Added]  # all added tokens, by content, in the order of their ids
    listed: frozenset[str]  # those in a list, and not only named as special
    where: dict[str, str]  # added token -> the file and key that have it
    absent: frozenset[str]  # those of `NAMED` that are null


GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # described by tokenizer.json alone


def read(
    family: Family, vocab: Mapping[str, int], beside: Mapping[str, Path], rows: Iterable[Row] | None
) -> Metadata:
    """Read the settings and added tokens in the files beside a vocabulary.

    Args:
        family: whose tokenizer it is.
        vocab: token -> id.
        beside: name -> path, of those of `_files.BESIDE` that are there.
        rows: the added tokens of a tokenizer.json; None if there is none.

    Raises:
        ValueError: a file is not what its name says, or a setting is refused.
    """
    config = _object(beside, _files.CONFIG)
    where = str(beside.get(_files.CONFIG, _files.CONFIG))
    _check(family, config, where, rows is not None)
    settings = _settings(family, config, where)
    items = [(key, value, where) for key, value in config.items()]
    if ROWS not in config:  # `transformers` reads the older file only then
        path = str(beside.get(_files.MAP, _files.MAP))
        later = _object(beside, _files.MAP)
        items = [item for item in items if item[0] not in later]
        items += [(key, value, path) for key, value in later.items()]
    named, extra = _special(items)
    listed = [*(rows or ()), *_rows(config, where)]
    flags = {row.token.content: row.token for row in listed}
    special = {*family.special, *(row.token.content for row in (*named.values(), *extra))}
    for older in _older(beside, vocab, special):  # they know no flags
        listed.append(older._replace(token=flags.get(older.token.content, older.token)))
    extra = [*named.values(), *extra]
    contents = {row.token.content for row in listed}
    ids, added = _number(vocab, listed, extra, contents)
    names = {key: row.token.content for key, row in named.items()}
    sources = {row.token.content: row.where for row in (*extra, *listed)}
    absent = frozenset(key for key, value, _ in items if key in NAMED and value is None)
    return Metadata(settings, names, ids, added, frozenset(contents), sources, absent)


def check_special(
    metadata: Metadata, vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], end: str = ""
) -> None:
    """Raise an error if a special token is an ordinary one of the vocabulary.

    Args:
        metadata: the settings beside it, of `read`.
        vocab: token -> id.
        merges: the pairs of tokens that join.
        end: what follows the last symbol of a word.
    """
    in_vocab = [token for token in metadata.added if token in vocab]
    merged = {left + right for left, right in merges} if in_vocab else ()
    for token in in_vocab:
        if token in merged or len(token.removesuffix(end)) == 1:
            raise ValueError(
                f"{metadata.where[token]} has {shown(token)}, which is an ordinary token of the "
                "vocabulary, and so can't be a special or an added one; take it out there"
            )


def check_unknown(metadata: Metadata, path: Path, unknown: str | None, named: str) -> None:
    """Raise an error if a tokenizer.json has another unknown token than the settings beside it."""
    if "unk_token" in metadata.absent or unknown not in (None, named):
        raise ValueError(
            f"{path} has the unknown token {shown(unknown)}, and the settings beside it "
            f"{shown(metadata.named.get('unk_token'))}: let a {_files.CONFIG} have the same "
            "unk_token"
        )


def row(value: Any, where: str, token_id: Any = None, special: bool = False) -> Row:
    """Return an added token read from JSON.

    Args:
        value: its content, or an object of content and flags.
        where: file and key, for errors.
        token_id: its id.
        special: whether it is special where the object has no such flag.
    """
    if isinstance(value, str):
        value = {"content": value, "special": True}
    if not isinstance(value, dict):
        raise ValueError(f"{where} has {shown(value)}, which is no added token")
    fields = {key: item for key, item in value.items() if key not in ("id", "__type")}
    content = fields.pop("content", None)
    flags = {key: fields.pop(key, False) for key in _FLAGS if key in fields}
    if fields or not isinstance(content, str) or {*map(type, flags.values())} - {bool}:
        raise ValueError(
            f"{where} has {shown(value)}, which is no added token: it has a content, and may "
            f"have the flags {', '.join(_FLAGS)}, true or false"
        )
    if not content or well_formed(content) != content:
        raise ValueError(f"{where} has an added token {shown(content)}, which is empty or not text")
    special = flags.pop("special", special)
    return Row(Added(content, **{"normalized": not special} | flags), token_id, where)


def _object(beside: Mapping[str, Path], name: str) -> dict[str, Any]:
    return _files.read_object(beside[name]) if name in beside else {}


def _check(family: Family, config: Mapping[str, Any], where: str, whole: bool) -> None:
    """Raise an error for a setting that is refused."""
    for key, allowed in REFUSED.items():
        if key not in family.heeded and (value := config.get(key)) not in allowed:
            raise ValueError(
                f"{where} has {key}={shown(value)}, which changes the ids of a text and is not "
                f"supported here; if the model was not trained so, set it to {allowed[-1]!r}"
            )
    name = config.get("tokenizer_class")
    classes = (*family.classes, *(GENERIC if whole else ()))
    if name is not None and name not in classes:
        raise ValueError(
            f"{where} has tokenizer_class={shown(name)}, which is none of {family.name}'s "
            f"({', '.join(classes)}); load it as what it is, or, if it gives the same ids, name "
            "one of these there"
        )


def _settings(family: Family, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    settings = {}
    for name, (argument, kind) in family.heeded.items():
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, kind):
            raise ValueError(f"{where} has {name}={shown(value)}, not a {kind.__name__} or null")
        if kind is list and not all(isinstance(item, str) for item in value):
            raise ValueError(f"{where} has {name}={shown(value)}, not a list of texts")
        settings[argument] = value
    return settings


def _special(items: Iterable[tuple[str, Any, str]]) -> tuple[dict[str, Row], list[Row]]:
    """Return the special tokens that have a name, in their order, and the others."""
    named: dict[str, Row] = {}
    others: list[Row] = []
    for key, value, where in items:
        place = f"{where}, {key}"
        if key in NAMED and value is not None:
            named[key] = row(value, place, special=where.endswith(_files.MAP))
        elif key in LISTED and value is not None:
            values = list(value.values()) if isinstance(value, dict) else value
            if not isinstance(values, list):
                raise ValueError(f"{place} is {shown(value)}, not a list of tokens")
            others += [row(item, place, special=True) for item in values]
        elif key.endswith("_token") and isinstance(value, str):
            others.append(row(value, place))
    return {key: named[key] for key in NAMED if key in named}, others


def _rows(config: Mapping[str, Any], where: str) -> list[Row]:
    """Return the added tokens of a tokenizer_config.json that gives their ids."""
    by_id = config.get(ROWS)
    if by_id is None:
        return []
    if not isinstance(by_id, dict):
        raise ValueError(f"{where} has {ROWS}={shown(by_id)}, not an object of id: token")
    rows = []
    for digits, value in by_id.items():
        is_id = digits.isdecimal() and digits.isascii() and len(digits) <= 9
        if not is_id or not isinstance(value, dict):
            raise ValueError(
                f"{where}, {ROWS} has {shown(digits)}: {shown(value)}, not an id and its token"
            )
        rows.append(row(value, f"{where}, {ROWS}", int(digits)))
    return rows


def _older(
    beside: Mapping[str, Path], vocab: Mapping[str, int], special: Collection[str]
) -> Iterable[Row]:
    """Yield the added tokens of added_tokens.json, or of the older special_tokens.txt."""
    lines: list[str] = []
    if path := beside.get(_files.ADDED_LINES):
        lines = [line for line in _files.read_text(path).split("\n") if line]
        if len(set(lines)) < len(lines):
            raise ValueError(f"{path} has a token twice")
    if listing := beside.get(_files.ADDED):
        ids = _files.read_vocab(listing)
        new = sorted(ids.keys() - vocab.keys(), key=ids.__getitem__)
        if lines and lines != new:
            raise ValueError(f"{listing} and {path} list other tokens; remove the one that is old")
        for token, token_id in ids.items():
            fields = {"content": token, "special": token in special or token in lines}
            yield row(fields, str(listing), token_id)
    else:
        for token_id, line in enumerate(lines, start=len(vocab)):
            yield row(line, str(path), token_id)


def _number(
    vocab: Mapping[str, int], rows: Iterable[Row], extra: Iterable[Row], listed: Collection[str]
) -> tuple[dict[str, int], dict[str, Added]]:
    """Return the vocabulary with all added tokens, and these in the order of their ids."""
    by_content: dict[str, Row] = {}
    for new in rows:
        content = new.token.content
        old = by_content.setdefault(content, new)
        token_id = vocab.get(content, old.token_id)
        if new.token_id is not None and new.token_id != token_id:
            raise ValueError(
                f"{new.where} gives the added token {shown(content)} the id {new.token_id}, but "
                f"its id in {'the vocabulary' if content in vocab else old.where} is {token_id}"
            )
        if old.token != new.token:
            raise ValueError(
                f"{old.where} and {new.where} contradict each other: {shown(old.token)}, "
                f"{shown(new.token)}"
            )
    new_rows = [row for content, row in by_content.items() if content not in vocab]
    numbered = sorted(
        (row.token_id, row.token.content) for row in new_rows if row.token_id is not None
    )
    expected = range(len(vocab), len(vocab) + len(numbered))
    if [token_id for token_id, _ in numbered] != [*expected]:
        raise ValueError(
            f"added tokens {shown([content for _, content in numbered])} in {new_rows[0].where} "
            f"must have the {len(numbered)} ids that follow the {len(vocab)} of the vocabulary, "
            f"and have {shown([token_id for token_id, _ in numbered])}; name a token for each id "
            "left out"
        )
    unnumbered = [row.token.content for row in new_rows if row.token_id is None]
    for other in extra:
        if other.token.content not in listed and other.token.content not in by_content:
            by_content[other.token.content] = other
            if other.token.content not in vocab:
                unnumbered.append(other.token.content)
    added = [*(content for _, content in numbered), *unnumbered]
    ids = dict(vocab) | {token: i for i, token in enumerate(added, start=len(vocab))}
    order = sorted(by_content, key=ids.__getitem__)
    return ids, {content: by_content[content].token for content in order}


def write_rows(tokens: Iterable[Added], ids: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return added tokens and their ids in the form that `transformers` and `read` take."""
    return {
        str(ids[token.content]): token._asdict() | {"special": not token.normalized}
        for token in tokens
    }
