"""Whether a free answer is right: exact match and token F1 on normalized text, as for SQuAD."""

import re
import string
import unicodedata
from collections import Counter

#: Signs of scripts that put no spaces between words: each is a token of its own.
_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(f"[{_SPACELESS}]|[^\\s{_SPACELESS}]+")
_ARTICLES = {"a", "an", "the"}


def answer_tokens(text: str, articles: bool = False, punctuation: bool = False) -> list[str]:
    """Return the tokens of a text without case, punctuation and English articles, in Unicode NFKC.

    It is the normalization of SQuAD (Rajpurkar et al., arXiv 1606.05250). In scripts without spaces between words, such
    as Chinese, Japanese and Thai, each character is a token, so that spaces do not count.

    Args:
        text: the text.
        articles: whether to keep articles.
        punctuation: whether to keep punctuation.

    >>> answer_tokens("The  Eiffel Tower!"), answer_tokens("東京（都）")
    (['eiffel', 'tower'], ['東', '京', '都'])
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not punctuation:
        text = "".join(sign for sign in text if not _is_punctuation(sign))
    return [token for token in _TOKEN.findall(text) if articles or token not in _ARTICLES]


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def agreement(said: str, truth: str) -> tuple[float, float]:
    """Return the exact match (0 or 1) and the token F1 of an answer.

    If nothing is left of the true answer, both texts keep articles (for the letter A) and then punctuation (for "+").

    Args:
        said: the answer of a model.
        truth: the right answer.

    >>> agreement("in Paris", "Paris."), agreement("B", "A"), agreement("a.", "A")
    ((0.0, 0.6666666666666666), (0.0, 0.0), (1.0, 1.0))
    """
    for kept in ((False, False), (True, False), (True, True)):
        one, other = answer_tokens(said, *kept), answer_tokens(truth, *kept)
        if other:
            break
    common = sum((Counter(one) & Counter(other)).values())
    return float(one == other), 2 * common / (len(one) + len(other)) if common else float(one == other)
