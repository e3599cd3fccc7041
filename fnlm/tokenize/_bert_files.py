"""Reading and writing the vocabulary and settings of BERT's tokenizers, in every published form."""

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _added, _files, _settings, _whole, wordpiece
from fnlm.tokenize._bert_words import DEFAULT, PROFILES, SPECIAL, Special
from fnlm.tokenize._bpe import well_formed

FAMILY = _settings.Family(
    "BERT",
    tuple(
        name + end
        for name in ("Bert", "DistilBert", "Electra", "MobileBert", "SqueezeBert")
        for end in ("Tokenizer", "TokenizerFast")
    ),
    {
        "do_lower_case": ("lower_case", bool),
        "strip_accents": ("strip_accents", bool),
        "tokenize_chinese_chars": ("tokenize_chinese_chars", bool),
        "never_split": ("never_split", list),
        "profile": ("profile", str),
    },
    SPECIAL,
)
_FORMS = (("tokenizer.json",), ("vocab.txt",))
_BESIDE = (_files.CONFIG, _files.MAP, _files.ADDED)


def read(
    name_or_path: NameOrPath, lower_case: bool | None, profile: str | None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the vocabulary and the settings: arguments of `bert.Tokenizer` by name.

    Raises:
        FileNotFoundError: there is no vocabulary; the message says where it was looked for.
        ValueError: a file is not what its name says, or is of another tokenizer.
    """
    (path,), beside, others = _files.find(name_or_path, _FORMS, _BESIDE)
    defaults: dict[str, Any] = {}
    rows, unknown, around = None, None, ["A"]
    if path.suffix == ".json":
        whole = _whole.read(path, "BERT", _whole.BERT)
        vocab, rows, around = whole.vocab, whole.rows, whole.around
        defaults, unknown = _of_whole(path, whole)
        for (other,) in others:
            stripped = {token.strip(" \t"): i for token, i in vocab.items()}
            same = wordpiece.read_vocab(other) in (vocab, stripped)
            _files.check_agreement(path, other, same and len(stripped) == len(vocab))
    else:
        vocab = wordpiece.read_vocab(path)
    metadata = _settings.read(FAMILY, vocab, beside, rows)
    settings = defaults | metadata.settings
    if lower_case is not None:
        settings["lower_case"] = lower_case
    names = {key.removesuffix("_token"): token for key, token in metadata.named.items()}
    special = Special(**{name: names[name] for name in Special._fields if name in names})
    _settings.check_unknown(metadata, path, unknown, special.unk)
    _whole.check_surrounds(path, around, ["A"], [special.cls, "A", special.sep])
    plain = {*special, *settings.get("never_split", ())} & vocab.keys()
    if "profile" in settings and rows is None:  # as fnlm saved it
        plain = metadata.added.keys() - metadata.listed
    # Special tokens are the profile's to look for, unless they count in some places only.
    added = [t for t in metadata.added.values() if t.content not in plain or not t.plain]
    settings |= {"added": tuple(added), "special": special}
    absent = {getattr(special, key.removesuffix("_token"), "") for key in metadata.absent}
    return vocab, _complete(settings, vocab, absent, profile, path)


def _of_whole(path: Path, whole: _whole.Whole) -> tuple[dict[str, Any], str | None]:
    """Return the settings and the unknown token of a tokenizer.json."""
    normalizer, unknown = whole.sections["normalizer"], whole.sections["model"].get("unk_token")
    settings = {
        "lower_case": normalizer.get("lowercase"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars"),
        "strip_accents": normalizer.get("strip_accents"),
    }
    for name, value in settings.items():
        if not isinstance(value, bool) and not (value is None and name == "strip_accents"):
            raise ValueError(
                f"{path} is not a tokenizer.json file of BERT: {name} is {_files.shown(value)}"
            )
    if not isinstance(unknown, str | None):
        raise ValueError(f"{path}, model.unk_token is {_files.shown(unknown)}, not a token")
    return settings, unknown


def _complete(
    settings: dict[str, Any],
    vocab: Mapping[str, int],
    absent: Container[str],
    profile: str | None,
    path: Path,
) -> dict[str, Any]:
    """Return the settings, completed by the defaults of the profile."""
    chosen = profile or settings.get("profile", DEFAULT)
    never_split = settings.get("never_split", [])
    if "profile" not in settings and chosen in PROFILES:  # then they are further ones
        special = settings["special"] if PROFILES[chosen].never_split else ()
        never_split = [*(token for token in special if token not in absent), *never_split]
    if "lower_case" not in settings:
        settings["lower_case"] = _lower_case(vocab, path)
    return settings | {
        "profile": chosen,
        "never_split": tuple(dict.fromkeys(never_split)),
    }


def _lower_case(vocab: Mapping[str, int], path: Path) -> bool:
    """Return whether a vocabulary is of lower-cased text, judging by its words.

    Capitals are those of the alphabets up to U+058F: others are rare and of late editions of
    Unicode, so that lower-cased vocabularies have some.
    """
    words = [token for token in vocab if token.isalpha()]
    capital = [
        token
        for token in words
        if token != token.lower() and any(c < "\u0590" and c != c.lower() for c in token)
    ]
    if 0 < len(capital) < len(words) / 100:
        raise ValueError(
            f"{path} has capital letters in {len(capital)} of {len(words)} words, such as "
            f"{capital[0]!r}, too few to tell whether it is of lower-cased text: give lower_case"
        )
    return not capital


def write(tokenizer: Any, directory: str | Path) -> None:
    """Write the vocab.txt and tokenizer_config.json of a `fnlm.tokenize.bert.Tokenizer`.

    Raises:
        ValueError: a token cannot be a line of a file.
    """
    vocab = dict(tokenizer.vocab)
    tokens = sorted(vocab, key=vocab.__getitem__)
    for token in tokens:
        if not _is_line(token) or tokens[0].startswith("\ufeff"):
            raise ValueError(f"vocab holds {token!r}, which cannot be a line of vocab.txt")
    never_split, added = tokenizer.never_split or (), [*map(_added.of, tokenizer.added)]
    special = tokenizer.special
    files = {"vocab.txt": "".join(f"{token}\n" for token in tokens)}
    contents = {token.content for token in added}
    further = [t for t in never_split if t in vocab and t not in special and t not in contents]
    settings: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lower_case,
        "strip_accents": tokenizer.strip_accents,
        "tokenize_chinese_chars": tokenizer.tokenize_chinese_chars,
        "additional_special_tokens": further,
        "never_split": never_split,
        "profile": tokenizer.profile,
    }
    if special != SPECIAL:
        settings |= {f"{name}_token": token for name, token in special._asdict().items()}
    if added:
        ids = dict(zip(contents, tokenizer.tokens_to_ids(contents), strict=True))
        settings[_settings.ROWS] = _settings.write_rows(added, ids)
        if new := {token: i for token, i in ids.items() if token not in vocab}:
            files[_files.ADDED] = _files.write_vocab(new)
    files[_files.CONFIG] = json.dumps(settings, indent=2) + "\n"
    _files.save(directory, files)


def _is_line(token: str) -> bool:
    """Whether a token can be written as a line of a vocab.txt, and read again."""
    whole = token == token.strip(" \t") == well_formed(token) and "\n" not in token
    return bool(token) and whole and "\r" not in token
