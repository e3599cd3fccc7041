"""Record what ftfy and spaCy make of texts, and count the lines of files where fnlm differs.

    python tests/make_gpt_words.py              writes tests/golden/gpt_words.json
    python tests/make_gpt_words.py FILE ...     compares line by line; .gz files are unpacked

It needs `pip install spacy ftfy==4.4.3`, which the tests do without.
"""

import gzip
import json
import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "gpt_words.json"
sys.path.insert(0, str(Path(__file__).parent.parent))

from fnlm.tokenize import _english  # noqa: E402
from fnlm.tokenize._fix_text import clean  # noqa: E402

# Own sentences, each with something that one of the steps is for.
TEXTS = [
    "“Don't,” she said—‘it’s 5 o'clock’… and we'd've gone; cannot, gonna, can't've!",
    "Mr. and Mrs. Smith left the U.S. at 5 a.m. (or 11p.m.) for $3.50, i.e. cheap. The end.",
    "a\r\nb\rc\n\n\n  d\u2028e\x85f\tg\xa0h\u3000i",
    "Caf\u0065\u0301 naïve Ångström ﬁne ﬂow ﬀ ﬃ ﬆ Ĳssel Ǆ ŉ",
    "ＦＵＬＬ ｗｉｄｔｈ １２３ ﾊﾝｶｸ ｡ 漢字、かな。 한국어 नमस्ते Ελλάδα Жук",
    "&lt;b&gt; &amp;amp; &hellip; &eacute; &#233; &#xe9; &#150; &#128; &nope; &amp &#xD800; &#0;",
    "<b>&amp;</b>\n&amp;",
    "\x1b[31mred\x1b[0m \ufeffbom\u206a\ufff9 \x00\x01\x0b\x0c\x7f tag\U000e0041",
    "cafÃ© naÃ¯ve â€œquoteâ€\x9d",
    "mixed – â€œquoteâ€™s â€¦ é",
    "latin\x93one\x94 it\x92s",
    "C++ and/or w/o C# F# .NET a.b a.B 3.14 1,000 10:30 5km 5km. 20% 100°C. -5 +5 5+5 2-3 2*3 x^2",
    "e-mail: me@example.com, www.example.com, http://example.com/a?b=c#d (example.org).",
    "rock'n'roll 'tis 'em '80s 80's y'all ma'am ol' doin' James' dogs' O'Neil d'Or l'été ''x''",
    ":D :P <3 XD 0.0 O.o foo:D a=b a<b a:b #tag @you a&b R&B $5 5$ US$5 €5 5€ ¥ £3m",
    "DON'T I'M WE'RE HE'S IT'S THAT'S CANNOT Dont Im youre Ill hell shed were its",
    "... .. . a... ...a a..b A.B. A.B ABC. x. X. é. É. 1. (1). [2]. {3}. \"q.\" 'q.' %. ²",
    "~~~ --- -- ___ *** /// \\\\ ||| ??? !!! ;;; ,,, +++ ((( ))) [[[ ]]] {{{ }}} `` ´ ¨ § ¶ © ™ •",
    "\u200bzero\u200dwidth\u2060 soft\xadhyphen \u202eright\u202c",
    "🤣👍🏽👨‍👩‍👧‍👦 a😀b ♥️ ½ ¼ № ℃ Å K",
    "",
    " ",
    "\n",
    "<unk> </w> <space> _start_",
]
PIECES = """
    don't ' a.m. x X AB ab . : = < > $ 5 12 km % # & @ é É Mr. I'm .. we're 's 'S D °C ° U.S. gonna
    cannot com https: ^ ` « » · 中 の α Ж € US$ 1a.m o'clock 'em 3 :D <3 x.com © ² … d' 'd - ! ( t
""".split()


def samples() -> list[str]:
    """Return the texts that are recorded: the own ones, all exceptions, random heaps of pieces."""
    choose = random.Random(5)
    heaps = ["".join(choose.choices(PIECES, k=choose.randint(2, 6))) for _ in range(600)]
    words = [word for word in _english._exceptions() if clean(word).text == word]
    return [*TEXTS, " ".join(words), *(" ".join(heaps[i : i + 20]) for i in range(0, 600, 20))]


class Peers:
    """ftfy, the authors' own cleaning (see `_fix_text`), and spaCy, in that order."""

    def __init__(self) -> None:
        self.ftfy, self.spacy = import_module("ftfy"), import_module("spacy")
        self.cut: Any = self.spacy.blank("en")
        self.versions = {"ftfy": self.ftfy.__version__, "spacy": self.spacy.__version__}

    def fix(self, text: str) -> str:
        return self.ftfy.fix_text(text)

    def words(self, fixed: str) -> list[str]:
        """Return spaCy's words of a text that ftfy has fixed."""
        return [word.text for word in self.cut(clean(fixed).text)]


def ours(text: str) -> list[str]:
    """Return fnlm's words of a text, before they are lower-cased."""
    chunks = [chunk for chunk in clean(text).text.split(" ") if chunk]
    return [w for c in chunks for w in (["\n "] if c == "\n" else _english.split(c))]


def lines(path: Path) -> list[str]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("utf-8", "replace").split("\n")


def main(paths: list[Path]) -> None:
    peers = Peers()
    if not paths:
        rows = [[text, peers.fix(text), peers.words(peers.fix(text))] for text in samples()]
        content = {"versions": peers.versions, "texts": rows}
        GOLDEN.write_text(json.dumps(content, ensure_ascii=True, indent=0) + "\n")
    for path in paths:
        texts = lines(path)
        differ = [t for t in texts if ours(t) != peers.words(peers.fix(t))]
        shown = " ".join(map(ascii, differ[:3]))
        sys.stdout.write(f"{path.name}: {len(texts)} lines, {len(differ)} differ {shown}\n")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
