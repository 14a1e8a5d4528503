"""Profiles of data: names that copies share, hostile files, and the comparison with a federation, by hand."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from fedcollm.data.audit.comparison import Comparison, Copies, compare, copies
from fedcollm.data.audit.findings import Record
from fedcollm.data.audit.fingerprints import SCHEME, bucket, image_name, sound_name, text_name
from fedcollm.data.audit.profiles import (
    Item,
    Profile,
    bin_names,
    item_of_record,
    length_counts,
    own_counts,
    read_profile,
)
from fedcollm.errors import UserError
from fedcollm.runs.audit_federation import sentences

# --- names ---

TEXT = "Displaced fracture of the left femur, first visit"


def test_spelling_changes_no_name_and_a_number_always_does():
    assert text_name(TEXT) == text_name(f"  {TEXT.upper()}!\n")
    assert text_name(TEXT) != text_name(TEXT.replace("left", "right"))
    assert text_name(f"{TEXT} 3") != text_name(f"{TEXT} 4")
    assert text_name("cough") == b"cough" != text_name("a cough")
    assert bucket(text_name(TEXT), 1024) == bucket(text_name(TEXT), 2048) % 1024


def test_most_near_copies_have_the_same_name():
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(40)) for _ in range(100)]
    kept = sum(text_name(text) == text_name(f"{text} again") for text in texts)
    assert kept > 70
    assert len({text_name(text) for text in texts}) == 100


def test_names_of_images_and_recordings_bear_another_size_and_another_loudness():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
    assert image_name(image) == image_name(image.resize((96, 96)))
    assert image_name(image) != image_name(image.rotate(90))
    time = np.arange(8000) / 8000
    sound = np.sin(2 * np.pi * 440 * time * (1 + time)).astype(np.float32)
    assert sound_name(sound) == sound_name(0.5 * sound) != sound_name(sound[::-1].copy())
    blank = [Image.new("RGB", (8, 8), color) for color in ("white", "black")]
    assert image_name(blank[0]) != image_name(blank[1])


def test_lengths_are_in_bins_of_powers_of_two():
    counts = length_counts([Item(b"", length) for length in (0, 15, 16, 31, 32, 10**6)], "text")
    assert counts.tolist() == [2, 2, 1, *[0] * 8, 1]
    assert length_counts([Item(b"", 0.2), Item(b"", 0.25), Item(b"", 300.0)], "speech_files").tolist()[:2] == [1, 1]
    assert (bin_names("text")[-1], bin_names("audio_files")[:2]) == (
        "16384 or more",
        ["under 0.25", "0.25 to under 0.5"],
    )


def test_records_that_can_not_be_read_are_not_counted(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = Record(tmp_path / "bad.png", 0, "bad.png", source=tmp_path / "bad.png")
    assert item_of_record(bad, "image_files") is None
    assert item_of_record(Record(tmp_path, 1, "row 1", "  "), "text") is None


# --- files of another party ---

GOOD = {
    "scheme": SCHEME,
    "kind": "text",
    "clients": 3,
    "examples": 100,
    "labels": {"heart": 60, "lung": 40},
    "lengths": [100, *[0] * 11],
    "sketch": [1, 2, *[0] * 62],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sketch": [1] * 63}, "sketch.*at least 64"),
        ({"sketch": [1] * 96}, "no power of two"),
        ({"sketch": [1] * 2**17}, "at most 65536"),
        ({"sketch": [-1, *[0] * 63]}, r"sketch\.0"),
        ({"sketch": [1.5, *[0] * 63]}, r"sketch\.0"),
        ({"sketch": [math.nan, *[0] * 63]}, r"sketch\.0"),
        ({"sketch": [math.inf, *[0] * 63]}, r"sketch\.0"),
        ({"sketch": [True, *[0] * 63]}, r"sketch\.0"),
        ({"sketch": [101, *[0] * 63]}, "sketch counts 101 examples of 100"),
        ({"labels": {"heart": 101}}, "labels counts 101"),
        ({"labels": {"": 1}}, r"labels\."),
        ({"labels": {"x" * 2000: 1}}, r"labels\."),
        ({"labels": ["heart"]}, "labels"),
        ({"lengths": [1] * 13}, "13 bins"),
        ({"lengths": []}, "0 bins"),
        ({"kind": "other"}, "12 bins"),
        ({"kind": "secret"}, "kind 'secret' is none of"),
        ({"scheme": "theirs"}, "scheme 'theirs'"),
        ({"examples": 0}, "examples"),
        ({"examples": 10**400}, "examples"),
        ({"clients": "3"}, "clients"),
        ({"more": 1}, "more"),
    ],
)
def test_a_profile_that_no_server_wrote_is_refused(tmp_path, change, reason):
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(GOOD))
    assert read_profile(file).labels == {"heart": 60, "lung": 40}
    file.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=f"is no profile of a federation: .*{reason}"):
        read_profile(file)


@pytest.mark.parametrize("content", [b"", b"[" * 10**5, b"\xff\xfe", b"[]", b"null", b" " * (2**23 + 1)])
def test_a_file_that_holds_no_object_is_refused(tmp_path, content):
    file = tmp_path / "profile.json"
    with pytest.raises(UserError, match="profile of a federation: No such file or directory"):
        read_profile(file)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"is no profile of a federation: (?s:.)+ profile\.json"):
        read_profile(file)


# --- copies ---


def test_copies_by_hand():
    # 30 of 40 own buckets are hit, and 20 of 40 others: 1 − q = (1/4) / (1/2), so q = 1/2 of the 40 records
    own, others = np.repeat([1, 0], 40), np.repeat([2, 0, 1, 0], [30, 10, 20, 20])
    found = copies(own, others)
    assert (found.records, found.hit, found.chance) == (pytest.approx(20.0), 30, 0.5)
    # a bucket is missed with (1 − p)(1 − q) = 1/4: variance 40 · 3/16 + 20² · 1/160 = 10, slope 1/2 · 40 = 20
    assert found.error == pytest.approx(40 * math.sqrt(10) / 20)
    assert found.found
    # with two records in each bucket, (1 − q)² = 1/2
    assert copies(2 * own, others).records == pytest.approx(80 * (1 - math.sqrt(0.5)))


def test_copies_at_the_edges():
    own = np.repeat([1, 0], [2, 62])
    assert copies(own, np.zeros(64, int)) == Copies(0.0, pytest.approx(0.0), 0, 0.0)
    assert copies(own, own).records == pytest.approx(2.0)
    assert copies(own, np.repeat([0, 1, 0], [2, 20, 42])).records == 0.0  # fewer hits than by chance
    full = copies(own, np.ones(64, int))
    assert (full.crowded, full.found, full.error) == (True, False, math.inf)
    assert copies(np.ones(64, int), np.repeat([1, 0], 32)).crowded  # no bucket is left to tell chance by
    assert copies(np.repeat([1, 0], [48, 16]), np.repeat([0, 1, 0], [48, 8, 8])).crowded  # and here only eight


# --- beside a federation ---


def beside(own_texts, other_texts, own_labels, all_labels, buckets=256) -> Comparison:
    names = [[Item(text_name(text), len(text)) for text in texts] for texts in (own_texts, other_texts)]
    both = [item for part in names for item in part]
    sketch = np.bincount([bucket(item.name, buckets) for item in both], minlength=buckets).tolist()
    lengths = length_counts(both, "text").tolist()
    made = Profile(
        scheme=SCHEME, kind="text", clients=3, examples=len(both), labels=all_labels, lengths=lengths, sketch=sketch
    )
    return compare(own_counts(names[0], own_labels, made), made, "characters")


OWN = [f"note {i:03} on a patient with a cough" for i in range(50)]
OTHERS = [f"letter {i:03} about the heart" for i in range(100)]


def test_labels_and_copies_that_stand_out_are_said_in_words():
    found = beside(OWN, [*OTHERS[:80], *OWN[:20]], {"heart": 31, "lung": 19}, {"heart": 130, "lung": 20})
    assert [(row.name, row.own, row.own_share, row.differs) for row in found.labels] == [
        ("heart", 31, 0.62, True),
        ("lung", 19, 0.38, True),
    ]
    assert (found.member, found.missing, found.unknown) == (True, 0, 0)
    assert found.copies.found
    assert abs(found.copies.records - 20) < 2 * found.copies.error
    said = sentences(found)
    assert said[0] == "50 records beside 150 examples of 3 clients"
    assert "38 % of your records are 'lung', 13 % of the federation's: more than chance explains" in said
    assert any("of your records (±" in one and "are held by another client too" in one for one in said)


def test_data_like_that_of_the_others_does_not_stand_out():
    found = beside(OTHERS[:50], OTHERS[50:], {"heart": 25, "lung": 25}, {"heart": 48, "lung": 52})
    assert not any(row.differs for row in (*found.labels, *found.lengths))
    said = sentences(found)
    assert "no label is more or less frequent than chance explains" in said
    assert any(one.startswith("no sign that another client has copies of your records") for one in said)


def test_records_that_are_no_part_of_the_federation_are_compared_with_all_of_it():
    made = {"heart": 60, "lung": 40}
    profile = Profile.model_validate(GOOD | {"labels": made, "sketch": [2] * 32 + [0] * 32, "examples": 200})
    own = own_counts([Item(bytes([i]), 20) for i in range(40)], {"lung": 39, "[red]x": 1}, profile)
    found = compare(own, profile, "characters")
    assert (found.member, found.unknown) == (False, 1)
    assert "don't seem to be part of" in sentences(found)[0]
    assert "1 of your records have a label that the federation does not have" in sentences(found)
    crowded = compare(own, profile.model_copy(update={"sketch": [3] * 64}), "characters")
    assert any("can't be told" in one for one in sentences(crowded))
