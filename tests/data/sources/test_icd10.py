import sys
from collections import Counter
from pathlib import Path

import pytest

from fedcollm.data.sources import icd10
from fedcollm.data.sources.icd10 import CHAPTERS, load_icd10


def test_chapters_are_21_single_words_in_order() -> None:
    assert " ".join(CHAPTERS) == (
        "infection cancer blood hormone mental nerve eye ear heart lung digestive skin bone kidney pregnancy newborn "
        "congenital symptom injury accident health"
    )


def test_every_chapter_has_the_same_number_of_examples_in_turn() -> None:
    pool = load_icd10(5, seed=0)
    assert pool.test is None
    assert len(pool.train) == 105
    assert Counter(example.label for example in pool.train) == dict.fromkeys(CHAPTERS, 5)
    assert [example.label for example in pool.train[:21]] == list(CHAPTERS)


def test_an_example_is_a_code_its_description_and_its_chapter() -> None:
    by_id = {example.id: example for example in load_icd10(10_000, seed=0).train}
    influenza = by_id["J10"]
    assert influenza.prompt == "Influenza due to other identified influenza virus:"
    assert influenza.choices == influenza.labels == CHAPTERS
    assert influenza.answer == 9
    assert influenza.label == "lung"
    assert influenza.group is None


def test_codes_and_texts_are_short() -> None:
    examples = load_icd10(10_000, seed=0).train
    assert max(len(example.id.replace(".", "")) for example in examples) == 6
    assert max(len(example.prompt) for example in examples) == 61  # 60 and the colon


def test_a_chapter_that_is_too_small_gives_what_it_has() -> None:
    counts = Counter(example.label for example in load_icd10(400, seed=0).train)
    assert counts == {**dict.fromkeys(CHAPTERS, 400), "blood": 335, "lung": 386}


def test_texts_are_distinct_and_chapter_22_is_absent() -> None:
    examples = load_icd10(10_000, seed=0).train
    assert len({example.content for example in examples}) == len(examples)
    assert not [example.id for example in examples if example.id.startswith("U")]


def test_the_draw_depends_on_the_seed_alone() -> None:
    first, again, other = (load_icd10(20, seed).train for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_larger_draw_keeps_the_smaller_one() -> None:
    small, large = load_icd10(20, seed=3).train, load_icd10(30, seed=3).train
    assert small == large[: len(small)]


def test_the_package_is_read_once() -> None:
    load_icd10(2, seed=0)
    assert icd10._texts_by_chapter() is icd10._texts_by_chapter()


def test_texts_come_from_the_cache_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path))
    icd10._texts_by_chapter.cache_clear()
    first, others = load_icd10(30, seed=1), icd10.other_descriptions()
    icd10._texts_by_chapter.cache_clear()
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)  # importing it would fail
    assert load_icd10(30, seed=1) == first
    assert icd10.other_descriptions() == others
    assert sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()) == ["icd10-chapters", "icd10-other"]


def test_inclusion_terms_are_other_names_and_give_no_description_away() -> None:
    terms = icd10.inclusion_terms()
    examples = load_icd10(10_000, seed=0).train
    assert terms["A00.0"] == ("Classical cholera",)
    assert "I10" not in terms
    assert len(terms) > 4_000
    assert terms.keys() <= {example.id for example in examples}
    descriptions = {example.prompt.removesuffix(":").casefold() for example in examples}
    assert not descriptions & {term.casefold() for own in terms.values() for term in own}
