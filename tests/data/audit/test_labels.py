import numpy as np
import pytest

from fedcollm.data.audit.findings import Fix, Record, Subject
from fedcollm.data.audit.labels import RULES, label_errors, noise_share, out_of_fold, suspects, with_rare


def sure(classes, top, others):
    """Rows of probabilities with a top class each."""
    rows = np.full((len(top), classes), others)
    rows[np.arange(len(top)), top] = 1 - (classes - 1) * others
    return rows


def test_noise_share_of_a_sure_model_is_the_share_of_its_contradictions():
    labels, probabilities = np.array([0] * 9 + [1]), sure(2, [0] * 10, 0.01)
    share, noise = noise_share(labels, probabilities)
    # the one contradiction is noise; noise says 0 as often as 1, so that a fifth of the labels is noise
    assert share == pytest.approx(0.2)
    assert noise[9] > 0.99
    assert noise[0] == pytest.approx(0.1 / 0.9, abs=0.01)  # 0.2 / 2 of 0.2 / 2 + 0.8


def test_unsure_model_contradicts_nothing():
    labels, probabilities = np.array([0, 0, 0, 1, 1, 0]), sure(2, [0, 0, 0, 0, 1, 0], 0.45)
    assert suspects(labels, probabilities) == []


@pytest.mark.parametrize("rule", ["noise_model", "confident_learning"])
def test_each_rule_finds_a_plain_flip(rule):
    if rule == "confident_learning":
        pytest.importorskip("cleanlab")
    truth = np.array([0] * 20 + [1] * 20)
    labels = truth.copy()
    labels[3] = 1
    found = suspects(labels, sure(2, truth, 0.02), rule)
    assert [(one.position, one.better) for one in found] == [(3, 0)]


def test_rare_classes_have_room():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    probabilities = sure(3, [0, 0, 0, 1, 1, 1, 0, 0], 0.0)
    probabilities[6] = [0.5, 0.5, 0.0]  # the model does not know what the only example of class 2 is
    rows = with_rare(labels, probabilities)
    assert rows[0].tolist() == [1.0, 0.0, 0.0]
    assert rows[6].tolist() == pytest.approx([0.05, 0.05, 0.9])  # all the room is where the model is unsure
    np.testing.assert_array_equal(with_rare(labels[:6], probabilities[:6]), probabilities[:6])


def test_out_of_fold_does_not_see_the_label_that_it_judges():
    rows = np.eye(2)[[0, 1] * 20]
    labels = np.array([0, 1] * 20)
    labels[0] = 1
    found = out_of_fold(rows, labels, 3)
    assert found.shape == (40, 3)
    assert found[0, 0] > 0.9
    assert (found[:, 2] == 0).all()
    assert (found == out_of_fold(rows, labels, 3)).all()


def test_label_errors_of_texts():
    words = {
        "cat": ["the cat purrs", "a cat with fur", "this cat climbs"],
        "dog": ["the dog barks", "a dog on a leash"],
    }
    texts = [(f"{text} {i}", kind) for kind, some in words.items() for i in range(12) for text in some]
    records = [Record(None, i, "", text, kind) for i, (text, kind) in enumerate(texts)]
    records[5] = Record(None, 5, "", records[5].text, "dog")
    found = list(label_errors(Subject("text", records, "kind")))
    assert [(one.record, one.fix) for one in found] == [(5, Fix("set", "kind", "cat"))]
    assert list(label_errors(Subject("text", records, "kind", free=True))) == []
    assert list(label_errors(Subject("text", records[:9], "kind"))) == []  # too few to judge


def test_another_spelling_of_the_likelier_class_is_no_wrong_label():
    labels = ["heart"] * 20 + ["knee"] * 20 + ["Heart", "knee"]
    records = [Record(None, i, f"row {i}", f"text {i}", label) for i, label in enumerate(labels, start=1)]
    probabilities = sure(3, [1] * 20 + [2] * 20 + [1, 1], 0.02)
    classes = ("Heart", "heart", "knee")
    found = label_errors(Subject("text", records, "kind", probabilities=probabilities, classes=classes))
    assert [one.record for one in found] == [41]


def test_where_every_class_is_rare_nothing_is_known():
    labels = np.arange(40) // 2  # 20 classes of two examples each
    probabilities = out_of_fold(np.eye(40), labels, 20)
    for rule in RULES:
        assert suspects(labels, probabilities, rule) == []
