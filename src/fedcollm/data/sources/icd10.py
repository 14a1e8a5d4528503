"""ICD-10-CM: assign a diagnosis text to its chapter (the embedded default task).

Data: the package `simple-icd-10-cm`, which ships the classification of the CDC (public domain).
"""

import functools
import random

from fedcollm.data.partition import check_classes
from fedcollm.modalities.base import Pool
from fedcollm.modalities.text.examples import TextExample
from fedcollm.seeding import derive_seed

#: One word for each of the chapters 1 to 21; chapter 22 (codes for special purposes) is left out.
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

#: Longer codes only add laterality and encounter; longer descriptions only cost time. In characters.
LONGEST_CODE, LONGEST_TEXT = 6, 60


def load_icd10(per_class: int, seed: int) -> Pool:
    """Return diagnosis texts with their chapters, the same number of each, in turn.

    Texts are the descriptions of at most `LONGEST_TEXT` characters of categories and subcategories whose codes
    have at most `LONGEST_CODE` (without the dot). A chapter that is too small gives what it has.

    Args:
        per_class: examples per chapter.
        seed: seed of the run.
    """
    draw = random.Random(derive_seed(seed, "icd10"))
    drawn: list[list[TextExample]] = []
    for chapter, texts in enumerate(_texts_by_chapter()):
        codes = list(texts)
        draw.shuffle(codes)  # a shuffle, not a sample: a larger per_class keeps the examples of a smaller one
        drawn.append([_example(code, description, chapter) for code, description in codes[:per_class]])
    turns = (part[i : i + 1] for i in range(per_class) for part in drawn)
    examples = [example for turn in turns for example in turn]
    check_classes(examples)
    return Pool(examples)


def _example(code: str, description: str, chapter: int) -> TextExample:
    return TextExample(code, f"{description}:", CHAPTERS, chapter, CHAPTERS)


@functools.cache
def _texts_by_chapter() -> tuple[tuple[tuple[str, str], ...], ...]:
    """Return (code, description) by chapter, each description once."""
    import simple_icd_10_cm as cm  # reads 98,505 codes when imported: 2 s

    chapters: list[list[tuple[str, str]]] = [[] for _ in CHAPTERS]
    seen: set[str] = set()
    for code in cm.get_all_codes(with_dots=True):
        if len(code.replace(".", "")) > LONGEST_CODE or not cm.is_category_or_subcategory(code):
            continue
        chapter, description = int(cm.get_ancestors(code)[-1]) - 1, cm.get_description(code)
        folded = " ".join(description.casefold().split())
        if chapter < len(CHAPTERS) and len(description) <= LONGEST_TEXT and folded not in seen:
            seen.add(folded)
            chapters[chapter].append((code, description))
    return tuple(tuple(texts) for texts in chapters)
