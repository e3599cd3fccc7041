"""Reading Transformer-XL's vocabularies and encoded texts, of fnlm and of the programs before it.

The older files, such as vocab.bin and corpus.bin, are pickles: `fnlm.files._pickle` describes their
contents without running them.
"""

import json
import mmap
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fnlm.files import _folder, _pickle, hub
from fnlm.files._pickle import Made, Pairs, Strided
from fnlm.files.hub import NameOrPath, Source
from fnlm.tokenize import _bpe, _files, _settings

CONFIG = "tokenizer_config.json"
CLASS = "TransfoXLTokenizer"
Ids = npt.NDArray[np.int64]

# The class of pytorch-pretrained-BERT ignores `never_split`, and counts words by the others.
FAMILY = _settings.Family(
    "Transformer-XL",
    (CLASS, "TransfoXLTokenizerFast"),
    {
        "lower_case": ("lower_case", bool),
        "delimiter": ("delimiter", str),
        "unknown": ("unknown", str),
    },
    ("<unk>", "<UNK>"),
)
_VOCABULARIES = (("vocab.txt", CONFIG), ("vocab.bin",), ("vocab.pkl",), ("vocab.txt",))
_CORPORA = (("corpus.bin",), ("corpus.pkl",), ("cache.pt",), ("cache.pkl",))
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file of torch.save before 1.6
_ARRAYS = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_PPB = "pytorch_pretrained_bert.tokenization_transfo_xl"
# The classes of pytorch-pretrained-BERT and kimiyoung/transformer-xl, with the same attributes.
_NAMES = _ARRAYS | {
    *("_codecs encode", "collections Counter", "numpy ndarray", "numpy dtype"),
    *("data_utils Corpus", "vocabulary Vocab", "utils.vocabulary Vocab"),
    *(f"{_PPB} TransfoXLCorpus", f"{_PPB} TransfoXLTokenizer"),
}
_BESIDE = (_files.CONFIG, _files.MAP, _files.ADDED)
_OPTIONAL = (*_BESIDE, _files.WHOLE)
_T = TypeVar("_T")


class Vocabulary(NamedTuple):
    """The symbols and settings in the files of a tokenizer."""

    symbols: list[str]  # in the order of their ids
    lower_case: bool = False
    delimiter: str | None = None
    unknown: str | None = None


class _Pickled(NamedTuple):
    """The contents of a pickle: its attributes, and a reader of the bytes of its storages."""

    attributes: dict[str, Any]
    storage: Callable[[str], bytes]


def write(tokenizer: Any, directory: str | Path) -> None:
    """Write the vocab.txt and tokenizer_config.json of a `fnlm.tokenize.transfo_xl.Tokenizer`.

    Raises:
        ValueError: a symbol cannot be a line of a file.
    """
    symbols = tokenizer.ids_to_tokens(range(tokenizer.vocab_size))
    for symbol in symbols:
        is_line = not {"\n", "\r"} & set(symbol) and symbol == _bpe.well_formed(symbol)
        if not is_line or symbols[0].startswith("\ufeff"):
            raise ValueError(f"vocab holds {symbol!r}, which cannot be a line of vocab.txt")
    settings = {
        "tokenizer_class": CLASS,
        "lower_case": tokenizer.lower_case,
        "delimiter": tokenizer.delimiter,
        "unknown": tokenizer.unknown,
    }
    contents = {
        "vocab.txt": "".join(f"{symbol}\n" for symbol in symbols),
        CONFIG: json.dumps(settings, indent=2) + "\n",
    }
    _files.save(directory, contents)


def read_vocabulary(name_or_path: NameOrPath) -> Vocabulary:
    """Read the symbols and settings of a tokenizer from its files.

    Raises:
        FileNotFoundError: there are none; the message says where they were looked for.
        ValueError: a file is not what its name says, or a pickle asks to run code.
    """
    beside: dict[str, Path] = {}
    others: list[tuple[Path, ...]] = []
    if not isinstance(name_or_path, Source) and Path(name_or_path).expanduser().is_file():
        path = Path(name_or_path).expanduser()
        hub.check_unpacked(path)
        home = _folder.current(path.parent, "tokenizer")
        path = home / path.name if (home / path.name).is_file() else path
        if path.suffix in (".txt", ".bin", ".pkl"):
            beside = {name: home / name for name in _BESIDE if (home / name).is_file()}
    else:
        (path, *config), beside, others = _files.find(name_or_path, _VOCABULARIES, _OPTIONAL)
        beside |= {file.name: file for file in config}
    if whole := beside.pop(_files.WHOLE, None):
        raise ValueError(f"{whole} and {path}: a tokenizer.json of Transformer-XL is not read here")
    vocabulary = _read_form(path, beside)
    for other, *_ in others:
        if other != path:
            _files.check_agreement(path, other, _read_form(other, {}).symbols == vocabulary.symbols)
    return vocabulary


def _read_form(path: Path, beside: dict[str, Path]) -> Vocabulary:
    """Read one form of a vocabulary and the settings beside it."""
    if _is_pickle(path):
        vocabulary = _unpickle(path, _vocabulary, "write its symbols to a vocab.txt, one a line")
    elif _files.CONFIG in beside:
        vocabulary = _saved(path, beside[_files.CONFIG])
    else:
        vocabulary = _first_words(path)
    vocab = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
    if len(vocab) < len(vocabulary.symbols):
        twice = Counter(vocabulary.symbols).most_common(1)[0][0]
        raise ValueError(f"{path} holds {twice!r} twice")
    metadata = _settings.read(FAMILY, vocab, beside, None)
    new = metadata.vocab.keys() - vocab.keys()
    if strange := new - {*FAMILY.special, metadata.named.get("unk_token")}:
        raise ValueError(
            f"the files beside {path} add {sorted(strange)[0]!r}, which the vocabulary lacks: "
            "write it into a vocab.txt, a symbol a line"
        )
    symbols = sorted(metadata.vocab, key=metadata.vocab.__getitem__)
    settings = {**metadata.settings}
    if "unk_token" in metadata.named:
        settings.setdefault("unknown", metadata.named["unk_token"])
    pickled = vocabulary._asdict()
    for name, value in settings.items():
        if _is_pickle(path) and pickled[name] != value and not (name == "unknown" and new):
            raise ValueError(
                f"{path} has {name}={pickled[name]!r}, and the settings beside it {value!r}"
            )
    return vocabulary._replace(**settings)._replace(symbols=symbols)


def _first_words(path: Path) -> Vocabulary:
    """Read a text file, each line of which begins with a symbol."""
    symbols = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number} is empty; a vocabulary has a symbol a line")
        symbols.append(line.split()[0])
    if not symbols:
        raise ValueError(f"{path} is empty; a vocabulary has a symbol a line")
    symbols = list(dict.fromkeys(symbols))
    return Vocabulary(symbols, unknown="<UNK>" if "<UNK>" in symbols else None)


def read_corpus(name_or_path: str | Path) -> dict[str, list[Ids]]:
    """Return the ids of each split: one array, or one a sentence where they have no order.

    Raises:
        FileNotFoundError: there is no such file; the message says where it was looked for.
        ValueError: it is no pickle of a corpus, or asks to run code.
    """
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        path = hub.find(name_or_path, _CORPORA)[0]
    make = partial(_corpus, most=path.stat().st_size)
    return _unpickle(path, make, "encode the text again")


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith((b"\x80", b"PK\3\4"))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _saved(path: Path, config: Path) -> Vocabulary:
    """Read the symbols that `Tokenizer.save` wrote."""
    if _files.read_object(config).get("tokenizer_class") != CLASS:
        raise ValueError(f"{config} is not of a {CLASS}; give the vocabulary a folder of its own")
    return Vocabulary(_lines(path))


def _unpickle(path: Path, make: Callable[[_Pickled], _T], remedy: str) -> _T:
    """Return what `make` makes of the contents of a pickle; all errors name the file."""
    damage = (ValueError, EOFError, OSError, RuntimeError, struct.error, zipfile.BadZipFile)
    with open(path, "rb") as file:
        try:
            if file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    return make(_zipped(archive))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return make(_plain(data))
        except damage as error:
            message = f"{path} can't be read ({str(error)[:500]}); or else {remedy}"
            raise ValueError(message) from error


def _run(data: bytes | mmap.mmap, start: int, stop: int) -> _pickle.Run:
    """Describe a pickle, in as many steps as it has bytes."""
    size = stop - start
    return _pickle.run(data, start, stop, names=_NAMES, steps=size, size=size)


def _zipped(archive: zipfile.ZipFile) -> _Pickled:
    """Read a file of torch.save."""
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError(f"it is a zip archive with {len(programs)} data.pkl, not 1")

    def member(name: str) -> bytes:
        path = programs[0].removesuffix("data.pkl") + name
        if path not in archive.NameToInfo:
            raise ValueError(f"it lacks {path}: copy the file again")
        info = archive.getinfo(path)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{path} in it is compressed, which torch.save never does")
        return archive.read(info)

    program = member("data.pkl")
    value = _run(program, 0, len(program)).value
    return _Pickled(_attributes(value), cache(lambda key: member(f"data/{key}")))


def _plain(data: mmap.mmap) -> _Pickled:
    """Read a file of pickle.dump, or of torch.save before 1.6."""
    value, end, storages = _run(data, 0, len(data))
    if value != _MAGIC:
        return _Pickled(_attributes(value), lambda key: b"")
    for _ in ("version", "system", "value"):
        value, end, storages = _run(data, end, len(data))
    keys, end, _ = _run(data, end, len(data))
    slices: dict[str, slice] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            raise ValueError("its list of storages is damaged: copy the file again")
        size = storages[key].numel * _dtype(storages[key].dtype).itemsize
        slices[key] = slice(end + 8, end + 8 + size)  # after the number of elements
        end += 8 + size
    return _Pickled(_attributes(value), lambda key: data[slices[key]] if key in slices else b"")


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, or the items of a dict of them."""
    state = value.state if isinstance(value, Made) else value
    if not isinstance(state, Pairs):
        raise ValueError("it holds no tokenizer and no corpus")
    return {name: item for name, item in state.items if isinstance(name, str)}


def _vocabulary(pickled: _Pickled) -> Vocabulary:
    """Find the vocabulary in a pickle of a tokenizer, or of a corpus with its tokenizer."""
    fields = pickled.attributes
    if "idx2sym" not in fields and "vocab" in fields:
        fields = _attributes(fields["vocab"])
    symbols, ids, unknown = fields.get("idx2sym"), fields.get("sym2idx"), fields.get("unk_idx")
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ValueError("it has no idx2sym, a list of symbols: is it a vocabulary?")
    if isinstance(ids, Pairs) and ids.items != [*zip(symbols, range(len(symbols)), strict=True)]:
        raise ValueError("its idx2sym and sym2idx contradict each other: build it again")
    if unknown is not None:
        if type(unknown) is not int or not 0 <= unknown < len(symbols):
            raise ValueError(f"its unk_idx is none of the {len(symbols)} ids: build it again")
        unknown = symbols[unknown]
    lower_case, delimiter = fields.get("lower_case", False), fields.get("delimiter")
    if not isinstance(lower_case, bool) or not isinstance(delimiter, str | None):
        raise ValueError("its lower_case is no bool, or its delimiter no text: build it again")
    return Vocabulary(symbols, lower_case, delimiter, unknown)


def _corpus(pickled: _Pickled, most: int) -> dict[str, list[Ids]]:
    """Find the ids in a pickle of a corpus, of at most so many bytes in all.

    A split may be None, or a list of paths: then it is left out.
    """
    splits: dict[str, list[Ids]] = {}
    for split in ("train", "valid", "test"):
        value = pickled.attributes.get(split)
        parts = value if isinstance(value, list) else [value]
        if all(isinstance(part, str | None) for part in parts):
            continue
        splits[split] = []
        for part in parts:
            splits[split].append(_ids(part, pickled.storage))
            most -= len(splits[split][-1])
            if most < 0:
                raise ValueError("it tells of more ids than it holds: copy the file again")
    if not splits:
        raise ValueError("it has no ids under train, valid or test: is it a corpus?")
    return splits


def _ids(value: Any, storage: Callable[[str], bytes]) -> Ids:
    """Return the one-dimensional array that a pickle describes (a NumPy array or a tensor)."""
    match value:
        case Strided(_, offset, (count,), (1,)):
            dtype, content = _dtype(value.storage.dtype), storage(value.storage.key)
            begin, whole = value.storage.start + offset, value.storage.numel
        case Made(name, _, (1, (int(count),), Made("numpy dtype") as kind, False, content)) if (
            name in _ARRAYS
        ):
            dtype, content = _dtype(kind), _bytes(content)
            begin, whole = 0, count
        case _:
            raise ValueError("it has ids that are no array of integers with one axis")
    if len(content) != whole * dtype.itemsize:
        raise ValueError(f"{whole} ids need {whole * dtype.itemsize} bytes, not {len(content)}")
    ids = np.frombuffer(content, dtype)[begin : begin + count]
    return ids.astype(np.int64, copy=False)


def _dtype(kind: Any) -> np.dtype[np.integer[Any]]:
    """Return the dtype of a storage, or of the description of an array."""
    match kind:
        case str() if re.fullmatch("u?int(8|16|32|64)", kind):
            return np.dtype(kind).newbyteorder("<")
        case Made(_, (str(code), *_), (3, ("<" | ">" | "|") as order, *_)) if re.fullmatch(
            "[iu][1248]", code
        ):
            return np.dtype(order + code)
    raise ValueError("it has ids that are no integers")


def _bytes(value: Any) -> bytes:
    """Return the bytes that a pickle holds as such, or as Latin-1 text."""
    match value:
        case bytes() | bytearray():
            return bytes(value)
        case Made("_codecs encode", (str(text), "latin1")) | str(text):
            return text.encode("latin-1")
    raise ValueError("it has an array without content")
