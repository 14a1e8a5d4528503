import io

import numpy as np
import pytest
from PIL import Image

from fedcollm.config import CleaningConfig
from fedcollm.data import cleaning
from fedcollm.data.audit.personal import Span
from fedcollm.data.cleaning import cleaned
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.vision.files import ImageFile

KINDS = ("cat", "dog")
KEEP = {"duplicates": "keep", "labels": "keep"}


def example(i, text, kind):
    return TextExample(str(i), text, KINDS, KINDS.index(kind), KINDS)


def clean(examples, **settings):
    return cleaned(examples, CleaningConfig(**settings), None, None, seed=0)


def kept(found):
    return [int(one.id) for one in found.examples]


FALL = "the cat fell from the roof of the house and hurt its leg"


def test_duplicates_keep_the_usual_label():
    some = [example(i, FALL, kind) for i, kind in enumerate(["dog", "cat", "cat"])]
    some += [example(3, f"{FALL}!", "cat"), example(4, f"{FALL}.", "dog"), example(5, "the dog", "dog")]
    exact = clean(some, duplicates="exact", labels="keep")
    assert kept(exact) == [1, 3, 4, 5]
    near = clean(some, duplicates="near", labels="keep")
    assert kept(near) == [1, 4, 5]  # the near duplicate with another label stays: who knows which one is right
    assert near.note("a") == (
        "client a: cleaning left 3 examples (contradicting duplicates dropped: 1, duplicates dropped: 1, near "
        "duplicates dropped: 1)"
    )
    assert (kept(clean(some, **KEEP)), clean(some, **KEEP).note("a")) == ([0, 1, 2, 3, 4, 5], None)


@pytest.fixture
def animals():
    """24 texts of two classes, the one at 5 with the other label."""
    some = [
        example(i, f"the {KINDS[i % 2]} {'purrs' if i % 2 == 0 else 'barks'} at {i}", KINDS[i % 2]) for i in range(24)
    ]
    some[5] = example(5, some[5].prompt, "cat")
    return some


def test_wrong_labels_are_dropped_or_changed(animals):
    dropped, changed = clean(animals), clean(animals, labels="relabel")
    assert kept(dropped) == [i for i in range(24) if i != 5]
    assert (kept(changed), changed.examples[5].label) == (list(range(24)), "dog")
    assert (dropped.counts["probably wrong labels dropped"], changed.counts["probably wrong labels changed"]) == (1, 1)
    assert clean(animals) == dropped
    assert kept(clean(animals[:12])) == list(range(12))  # too few to judge


def test_choices_of_its_own_are_no_classes(animals):
    own = [TextExample(str(i), f"which {i}?", ("x", "y"), i % 2, ("A", "B")) for i in range(24)]
    with pytest.raises(UserError, match=r"task.cleaning.labels.*own"):
        clean(own)


def test_personal_data_is_masked_before_duplicates_are_looked_for(monkeypatch):
    monkeypatch.setattr(cleaning, "spans", lambda text: [Span(0, 4, "NAME", 0.9)] if text.startswith("Anna") else [])
    some = [example(0, f"Anna: {FALL}", "cat"), example(1, f"[NAME]: {FALL}", "cat")]
    found = clean(some, personal="mask", labels="keep")
    assert [one.prompt for one in found.examples] == [f"[NAME]: {FALL}"]
    assert found.counts["personal data masked"] == 1
    free = TextExample("0", "who?", ("Anna B",), 0, ("Anna B",))
    assert clean([free], personal="mask", labels="keep").examples[0].label == "[NAME] B"


def test_images_that_are_almost_the_same():
    def image(i, size):
        pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((size, size)).save(stream, "PNG")
        return ImageFile.read(str(i), stream.getvalue(), KINDS, 0)

    some = [image(0, 64), image(1, 64), image(2, 70)]
    assert kept(clean(some, duplicates="near", labels="keep")) == [0]
    assert kept(clean(some, duplicates="exact", labels="keep")) == [0, 2]
