"""Reading BERT's vocabulary and settings, as Google, the ancestor and `transformers` wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnlm.params import hub
from fnlm.tokenize import _files, wordpiece
from fnlm.tokenize._bert_words import DEFAULT, PROFILES, SPECIAL

CONFIG = "tokenizer_config.json"
_FILES = (("vocab.txt", CONFIG), ("vocab.txt",), ("tokenizer.json", CONFIG), ("tokenizer.json",))
# Their name -> the argument of `bert.Tokenizer`, and its type.
_SETTINGS: dict[str, tuple[str, type]] = {
    "do_lower_case": ("lower_case", bool),
    "strip_accents": ("strip_accents", bool),
    "tokenize_chinese_chars": ("tokenize_chinese_chars", bool),
    "never_split": ("never_split", list),
    "profile": ("profile", str),
}


def read(name_or_path: str | Path, profile: str | None) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the vocabulary and the settings: arguments of `bert.Tokenizer` by name.

    Raises:
        FileNotFoundError: there is no vocabulary; the message says where it was looked for.
        ValueError: a file is not what its name says, or is of another tokenizer.
    """
    paths = _find(name_or_path)
    config = _files.read_json(paths[1]) if len(paths) == 2 else {}
    if not isinstance(config, dict):
        raise ValueError(f"{paths[1]} is not a JSON object; is it a {CONFIG}?")
    settings = _named(config, paths[-1])
    if paths[0].suffix == ".json":
        vocab, added, theirs = _read_tokenizer_json(paths[0])
        settings = theirs | settings
    else:
        vocab, added = wordpiece.read_vocab(paths[0]), {}
        extra = paths[0].with_name("added_tokens.json")
        if extra.is_file():
            added = _files.read_vocab(extra)
    chosen = profile or settings.get("profile", DEFAULT)
    never_split = settings.get("never_split", [])
    if "profile" not in settings and chosen in PROFILES:  # then they are further ones
        never_split = [*PROFILES[chosen].never_split, *never_split]
    more = [token for token in (*added, *_added(config)) if token not in SPECIAL]
    settings["never_split"] = tuple(dict.fromkeys([*never_split, *more]))
    if "lower_case" not in settings:
        name = "/".join(Path(name_or_path).parts[-2:])
        settings["lower_case"] = _lower_case(name, vocab)
    for token in more:
        vocab.setdefault(token, added.get(token, len(vocab)))
    return vocab, {**settings, "profile": chosen}


def _find(name_or_path: str | Path) -> tuple[Path, ...]:
    """Return the path of the vocabulary, and that of the settings if there are any."""
    path = Path(name_or_path).expanduser()
    if not path.is_file() or path.suffix != ".txt":
        return hub.find(name_or_path, _FILES)
    beside = path.with_name(CONFIG)
    return (path, beside) if beside.is_file() else (path,)


def _named(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a tokenizer_config.json says of the settings, under our names."""
    found = {}
    for theirs, (ours, kind) in _SETTINGS.items():
        value = config.get(theirs)
        if value is None:
            continue
        if not isinstance(value, kind):
            raise ValueError(f"{path} has {theirs}={value!r}, not a {kind.__name__} or null")
        found[ours] = value
    return found


def _added(config: Mapping[str, Any]) -> list[str]:
    """Return the special tokens that a tokenizer_config.json adds, in order."""
    known = config.get("added_tokens_decoder") or {}
    rows = [known[at] for at in sorted(known, key=int)]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        rows += config.get(name) or []
    return [row["content"] if isinstance(row, dict) else row for row in rows]


def _lower_case(name: str, vocab: Mapping[str, int]) -> bool:
    """Say whether a vocabulary is of lower-cased text: by its name, or else by its tokens."""
    if "cased" in name.lower():
        return "uncased" in name.lower()
    return not any(token.isalpha() and token != token.lower() for token in vocab)


def _read_tokenizer_json(path: Path) -> tuple[dict[str, int], dict[str, int], dict[str, Any]]:
    """Return vocabulary, added tokens and settings of a tokenizer.json that is like BERT's."""
    data = _files.read_json(path)
    try:
        model, normalizer = data["model"], data["normalizer"] or {}
        kinds = (model.get("type"), normalizer.get("type"), data["pre_tokenizer"]["type"])
        details = (model.get("continuing_subword_prefix"), normalizer.get("clean_text"))
        if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer") or details != ("##", True):
            raise ValueError(
                f"{path} is not a BERT tokenizer: model, normalizer and pre-tokenizer are {kinds}, "
                f"prefix and clean_text are {details}"
            )
        settings = {
            "lower_case": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        }
        added = {token["content"]: token["id"] for token in data["added_tokens"]}
        return dict(model["vocab"]), added, settings
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a tokenizer.json file ({error!r})") from None
