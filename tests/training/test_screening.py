import numpy as np
import pytest
import torch
from tests.parties import Modelless

from fedcollm.config import CleaningConfig
from fedcollm.data.cleaning import known_labels
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.examples import TextExample
from fedcollm.training.screening import Screen, build_screen

KINDS = ("ape", "cat", "dog")
SURE = (0.6, 0.8, 0.95)  # how sure a judge is of one text after the other
SETTINGS = CleaningConfig(judge="ngrams_global")


class Sure(Modelless):
    """Believes in the class that the prompt begins with, and as far as `sure` says in that of the example at 5."""

    def __init__(self, sure=0.9):
        self.sure = sure

    def size(self, example):
        return 1

    def probabilities(self, model, examples):
        sure = [self.sure if one.id == "5" else SURE[int(one.id) % 3] for one in examples]
        return [
            torch.tensor([own if one.prompt.startswith(kind) else (1 - own) / 2 for kind in KINDS])
            for one, own in zip(examples, sure, strict=True)
        ]


def animals(labels):
    """Texts of cats and dogs in turn, all of which say what they are, with these labels; no ape occurs."""
    return [
        TextExample(str(i), f"{KINDS[1 + i % 2]} {i}", KINDS, None if kind is None else KINDS.index(kind), KINDS)
        for i, kind in enumerate(labels)
    ]


@pytest.fixture
def some():
    """24 texts, of which every third has the label of the other class and the one at 7 has none."""
    return animals([None if i == 7 else KINDS[1 + (i + (i % 3 == 2)) % 2] for i in range(24)])


RIGHT = [i for i in range(24) if i % 3 != 2]


def screen_of(examples, own, labels="drop"):
    """A screen whose own judge believes in what the example at 5 is as far as `own` says. Columns: cat and dog."""
    known = known_labels(examples)
    right = np.array([place % 2 for place in known.places])
    sure = np.array([own if place == 5 else SURE[place % 3] for place in known.places])
    beliefs = np.where(np.arange(2) == right[:, None], sure[:, None], 1 - sure[:, None])
    return Screen(known, beliefs, labels)


def left(screen, modality, examples):
    return [(int(one.id), one.label) for one in screen.screened(modality, torch.nn.Linear(1, 1), examples, "here")]


def test_a_label_that_both_judges_doubt_is_dropped_or_changed(some):
    assert left(screen_of(some, 0.9), Sure(), some) == [(i, some[i].label) for i in RIGHT]
    changed = left(screen_of(some, 0.9, "relabel"), Sure(), some)
    assert changed == [(i, None if i == 7 else KINDS[1 + i % 2]) for i in range(24)]


@pytest.mark.parametrize(
    ("own", "slm", "dropped"),
    [
        (0.9, 1 / 3, True),  # an SLM that knows nothing leaves the decision to the other judge,
        (0.5, 0.9, True),  # and the other way round
        (0.1, 0.99, True),  # of two that disagree, the surer one decides: √(.1 · .99) against √(.9 · .005)
        (0.5, 1 / 3, False),
    ],
)
def test_the_surer_judge_decides(some, own, slm, dropped):
    found = left(screen_of(some, own), Sure(slm), some)
    assert ((5, "cat") not in found) is dropped


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_nothing_is_dropped_where_few_labels_are_wrong(wrong):
    """What is doubted in good data is mostly hard, not wrong."""
    good = animals([KINDS[1 + (i + (i >= 24 - wrong)) % 2] for i in range(24)])
    assert [i for i, _ in left(screen_of(good, 0.9), Sure(), good)] == list(range(24))


def test_screen_is_built_where_labels_are_judged_in_rounds(some):
    own = build_screen(SETTINGS, some, Sure(), 8, seed=0)
    assert left(own, Sure(), some) == [(i, some[i].label) for i in RIGHT]
    assert own.own.shape == (23, 2)  # the unlabelled one is not judged, and no ape occurs
    for settings in (None, CleaningConfig(), CleaningConfig(labels="keep", judge="ngrams_global")):
        assert build_screen(settings, some, Sure(), 8, seed=0) is None
    assert build_screen(SETTINGS, some[:12], Sure(), 8, seed=0) is None  # too few to judge


def test_a_modality_without_probabilities_is_refused(some):
    class Silent(Sure):
        probabilities = Modality.probabilities

    with pytest.raises(UserError, match=r"task.cleaning.judge ngrams_global needs Silent.probabilities.*judge: ngrams"):
        build_screen(SETTINGS, some, Silent(), 8, seed=0)
