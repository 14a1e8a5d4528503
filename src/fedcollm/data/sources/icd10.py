"""ICD-10-CM, the default task: assign the text of a diagnosis to its chapter.

The data comes from the package `simple-icd-10-cm`, which ships the classification of the CDC (public domain).
"""

import functools
import hashlib
import importlib.util
import random
from pathlib import Path

from fedcollm.data.partition import check_classes
from fedcollm.data.pool import Pool
from fedcollm.modalities.text.examples import TextExample
from fedcollm.seeding import derive_seed
from fedcollm.storage import cached_json

#: One word for each of the chapters 1 to 21. Chapter 22 (codes for special purposes) is left out.
CHAPTERS = (
    "infection",
    "cancer",
    "blood",
    "hormone",
    "mental",
    "nerve",
    "eye",
    "ear",
    "heart",
    "lung",
    "digestive",
    "skin",
    "bone",
    "kidney",
    "pregnancy",
    "newborn",
    "congenital",
    "symptom",
    "injury",
    "accident",
    "health",
)

#: Limits in characters. Longer codes only add laterality and encounter, and longer descriptions only take more time.
LONGEST_CODE, LONGEST_TEXT = 6, 60

#: Version of the way in which texts are read out of the package, part of the key of the cache.
_VERSION = 1

#: The same for the inclusion terms.
_TERMS_VERSION = 1


def load_icd10(per_class: int, seed: int) -> Pool:
    """Return diagnosis texts with their chapters, equally many per chapter, one chapter after the other in turn.

    A text is the description of a category or subcategory. Its code has at most `LONGEST_CODE` characters (without
    the dot), and the description has at most `LONGEST_TEXT`. A chapter with fewer texts gives all that it has.

    Args:
        per_class: number of examples per chapter.
        seed: the run's seed.
    """
    draw = random.Random(derive_seed(seed, "icd10"))
    drawn: list[list[TextExample]] = []
    for chapter, texts in enumerate(_texts_by_chapter()):
        codes = list(texts)
        draw.shuffle(codes)  # unlike a sample, the first codes stay the same for a larger per_class
        drawn.append([_example(code, description, chapter) for code, description in codes[:per_class]])
    turns = (part[i : i + 1] for i in range(per_class) for part in drawn)
    examples = [example for turn in turns for example in turn]
    check_classes(examples)
    return Pool(examples)


def _example(code: str, description: str, chapter: int) -> TextExample:
    return TextExample(code, f"{description}:", CHAPTERS, chapter, CHAPTERS)


def other_descriptions() -> list[str]:
    """Return the descriptions that the task never uses, because the description or its code is too long, sorted."""
    return cached_json("icd10-other", _made_of(), _other_descriptions)


@functools.cache
def inclusion_terms() -> dict[str, tuple[str, ...]]:
    """Return other names of the diagnoses, by code: the inclusion terms of the classification.

    A term that is the description of any code of the task is left out, so that none gives away a test example. A
    diagnosis without terms is left out too.
    """
    found: dict[str, list[str]] = cached_json("icd10-terms", [_made_of(), _TERMS_VERSION], _read_terms)
    return {code: tuple(terms) for code, terms in found.items()}


def _read_terms() -> dict[str, list[str]]:
    import simple_icd_10_cm as cm  # pyright: ignore[reportMissingTypeStubs]

    codes = [code for texts in _texts_by_chapter() for code, _ in texts]
    described = {_folded(text) for texts in _texts_by_chapter() for _, text in texts}
    found = {code: [term for term in cm.get_inclusion_term(code) if len(term) <= LONGEST_TEXT] for code in codes}
    kept = {code: [term for term in terms if _folded(term) not in described] for code, terms in found.items()}
    return {code: terms for code, terms in kept.items() if terms}


def _folded(text: str) -> str:
    """Return a text without differences in case and white space."""
    return " ".join(text.casefold().split())


@functools.cache
def _texts_by_chapter() -> tuple[tuple[tuple[str, str], ...], ...]:
    """Return (code, description) pairs by chapter, with distinct descriptions."""
    chapters: list[list[list[str]]] = cached_json("icd10-chapters", _made_of(), _read_chapters)
    return tuple(tuple((code, description) for code, description in texts) for texts in chapters)


@functools.cache
def _made_of() -> list[object]:
    """Return what the texts depend on: digests of the package's files, and the limits above."""
    spec = importlib.util.find_spec("simple_icd_10_cm")  # does not import the package
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or []]
    files = sorted(file for place in places for kind in ("*.py", "data/*.*") for file in place.glob(kind))
    digests = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
    return [_VERSION, digests, len(CHAPTERS), LONGEST_CODE, LONGEST_TEXT]


def _other_descriptions() -> list[str]:
    import simple_icd_10_cm as cm  # pyright: ignore[reportMissingTypeStubs]

    codes = {code: cm.get_description(code) for code in cm.get_all_codes(with_dots=True)}
    used = {text for texts in _texts_by_chapter() for _, text in texts}
    long = {t for code, t in codes.items() if len(code.replace(".", "")) > LONGEST_CODE or len(t) > LONGEST_TEXT}
    return sorted(long - used)


def _read_chapters() -> list[list[tuple[str, str]]]:
    import simple_icd_10_cm as cm  # pyright: ignore[reportMissingTypeStubs] # reads 98,505 codes, which takes 2 s

    chapters: list[list[tuple[str, str]]] = [[] for _ in CHAPTERS]
    seen: set[str] = set()
    for code in cm.get_all_codes(with_dots=True):
        if len(code.replace(".", "")) > LONGEST_CODE or not cm.is_category_or_subcategory(code):
            continue
        chapter, description = int(cm.get_ancestors(code)[-1]) - 1, cm.get_description(code)
        folded = _folded(description)
        if chapter < len(CHAPTERS) and len(description) <= LONGEST_TEXT and folded not in seen:
            seen.add(folded)
            chapters[chapter].append((code, description))
    return chapters
