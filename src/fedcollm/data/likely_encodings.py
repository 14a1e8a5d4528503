"""Guess the encoding of a text that is not UTF-8.

Bytes beyond ASCII stand alone in languages with Latin letters, and side by side in others. Of the encodings of Latin
letters, the one is likeliest under which a single language has most of the letters; of several, the one that is used
most, which is cp1252.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

#: Encoding of Latin letters to the letters beyond ASCII of the languages that are written in it, the usual one first.
_LATIN: Mapping[str, Sequence[str]] = {
    "cp1252": (
        *("àâæçèéêëîïôœùûüÿ", "áéíñóúüàçï", "äöüßéàè", "áâãàçéêíóôõúò", "àèéìíîòóùú", "åäöéàüæø", "æøåéòôèäö"),
        *("áðéíóúýþæö", "áéëïóöüèêäàçñ", "äöõőüšž", "àçèéíïòóúü", "àâçèéêëîïôœùûäöüß"),
    ),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýžöü", "áäčďéíĺľňóôŕšťúýžö", "áéíóöőúüű", "čćđšžöü", "ăâîşţ"),
    "cp1254": ("çğıöşüâîûi̇",),
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äöõüšž"),
}

#: Encodings of other letters.
_OTHERS = ("cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256")

#: First and last letter of some scripts: kana as they are usual, narrow ones, and Korean syllables.
_FULL_KANA, _HALF_KANA, _HANGUL = ("\u3041", "\u30ff"), ("\uff66", "\uff9f"), ("\uac00", "\ud7a3")

_HIGH = re.compile(rb"[\x80-\xff]+")
#: Bytes that begin a kana in cp932, and are rare signs in the encodings of Latin letters.
_KANA = re.compile(rb"[\x81-\x83]")
#: A letter that Portuguese has only before an e; elsewhere it is Estonian, or the Hungarian one in its place in cp1250.
_NO_PORTUGUESE = re.compile("õ(?!e)")
#: Number of bytes that are looked at.
_TRIED = 2**20


def likely_encoding(content: bytes) -> str | None:
    """Return the likeliest encoding of bytes that are not text in UTF-8; None if none fits."""
    piece = content[:_TRIED]
    if len(content) > len(piece):
        piece = piece[: piece.rfind(b"\n") + 1] or piece
    latin, others = [name for name in _LATIN if _fits(content, name)], [n for n in _OTHERS if _fits(content, n)]
    if latin and _stand_alone(piece):
        return _latin(piece, latin)
    return _other(piece, others) or (_latin(piece, latin) if latin else None)


def _stand_alone(content: bytes) -> bool:
    """Return whether many bytes beyond ASCII have no other one beside them, as is rare where letters take two."""
    runs = Counter(min(len(run), 2) for run in _HIGH.findall(content) for _ in run)
    return 2 * runs[1] > runs[2] and 5 * len(_KANA.findall(content)) < runs.total()


def _latin(content: bytes, names: Sequence[str]) -> str:
    return max(names, key=lambda name: _letters(content.decode(name, errors="replace"), _LATIN[name]))


def _letters(text: str, languages: Sequence[str]) -> int:
    """Return the number of letters beyond ASCII that the language with most of them has."""
    text = _NO_PORTUGUESE.sub("ő", text.lower())
    found = Counter(sign for sign in text if not sign.isascii() and sign.isalpha())
    return max(sum(count for sign, count in found.items() if sign in letters) for letters in languages)


def _other(content: bytes, names: Sequence[str]) -> str | None:
    """Return the likeliest encoding of letters that are not Latin: first by kana and hangul, which nothing else has."""
    import charset_normalizer

    texts = {name: content.decode(name, errors="replace") for name in names}
    for name in ("cp932", "euc_jp"):
        if name in texts and _share(texts[name], _FULL_KANA) > 0.1 > _share(texts[name], _HALF_KANA):
            return name
    if "cp949" in texts:
        if _share(content.decode("euc_kr", errors="replace"), _HANGUL) > 0.8:  # without the rare syllables of cp949
            return "cp949"
        names = [name for name in names if name != "cp949"]
    likeliest = charset_normalizer.from_bytes(content, cp_isolation=list(names)).best() if names else None
    return None if likeliest is None else likeliest.encoding


def _share(text: str, bounds: tuple[str, str]) -> float:
    """Return the share of letters beyond ASCII, and of what is no text, that lies between two letters."""
    letters = [sign for sign in text if not sign.isascii() and (sign.isalpha() or sign == "\ufffd")]
    return sum(bounds[0] <= sign <= bounds[1] for sign in letters) / max(1, len(letters))


def _fits(content: bytes, encoding: str) -> bool:
    try:
        text = content.decode(encoding)
    except UnicodeError:
        return False
    return not any(unicodedata.category(sign) == "Cc" and sign not in "\t\n\r\f" for sign in set(text))


def sample_word(text: str) -> str | None:
    """Return a word of a text with a letter beyond ASCII, by which a reader sees whether the encoding is right.

    >>> sample_word("un cœur, une âme")
    'cœur'
    """
    words = (word for word in re.findall(r"\w+", text) if not word.isascii())
    word = next(words, None)
    return None if word is None else word[:20]
