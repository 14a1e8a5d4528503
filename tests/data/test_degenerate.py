from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from fedcollm.data.degenerate import degenerate_notes
from fedcollm.data.pool import Split
from fedcollm.modalities.text.examples import TextExample

NAMES = ("cold", "flu", "pox")


def some(labels: str, names: Sequence[str] = NAMES) -> list[TextExample]:
    """One example for each digit, which is the index of its label."""
    return [TextExample(str(i), f"text {i}", tuple(names), int(k), tuple(names)) for i, k in enumerate(labels)]


def notes(public: str, test: str, *clients: str, names: Sequence[str] = NAMES) -> list[str]:
    parts = {str(i): some(labels, names) for i, labels in enumerate(clients)}
    return degenerate_notes(Split(some(public, names), parts, some(test, names)))


def test_nothing_is_said_of_a_sound_split():
    assert notes("0012", "0120120120", "001", "122") == []


def test_one_class_only():
    assert notes("000", "0120120120", "012") == ["the labelled public part has examples of one class only, 'cold'"]
    assert notes("012", "1111111111", "012") == ["the test set has examples of one class only, 'flu'"]
    each = "each client has examples of one class only ('cold', 'flu', 'pox')"
    assert notes("012", "0120120120", "00", "11", "22") == [each]
    assert notes("012", "0120120120", "00", "12", "22") == []
    everything_else = notes("", "0101010101", "00")
    assert "the client has examples of one class only ('cold')" in everything_else


def test_classes_that_nobody_can_learn_from():
    assert notes("01", "0120120120", "01", "01") == [
        "3 examples of the test set are of a class that neither a client nor the public part has an example of: 'pox'"
    ]
    assert notes("012", "0120120120", "01", "01") == ["no client has an example of 'pox'"]
    many = tuple(f"class {i}" for i in range(8))
    (said,) = notes("01234567", "0120120120", "01", names=many)
    assert said == "no client has an example of 'class 2', 'class 3', 'class 4', 'class 5', 'class 6' and 1 more"


def test_of_clients_elsewhere_nothing_is_said():
    assert notes("012", "0120120120") == []


def test_a_handful_of_test_examples():
    assert notes("012", "012", "012") == ["the test set has only 3 examples, so that one of them is 33 % of a score"]
    assert notes("012", "0120120120", "012") == []


def test_a_label_that_begins_another_one():
    (said,) = notes("01", "0101010101", "01", names=("non-small", "non"))
    assert said.startswith("a label begins another one ('non' begins 'non-small'): by the sum of log-likelihoods")
    assert notes("01", "0101010101", "01", names=("small", "non-small")) == []


def test_labels_that_begin_one_another_are_counted_without_comparing_all():
    (said,) = notes(
        "01", "0101010101", "01", names=[*("a" * i for i in range(1, 2001)), *map(str, range(20_000, 40_000))]
    )
    assert "'a' begins 'aa', 'a' begins 'aaa', 'aa' begins 'aaa', 'a' begins 'aaaa', 'aa' begins 'aaaa'" in said
    assert "and 1998995 more" in said  # 2000 x 1999 / 2 pairs without the 5


def test_choices_of_a_question_of_its_own_are_no_shared_labels():
    asked = [TextExample(str(i), f"{i}?", ("2", "20"), i % 2, ("A", "B"), own_choices=True) for i in range(12)]
    assert degenerate_notes(Split(asked[:2], {"0": asked}, asked)) == []


def test_free_answers_have_no_classes():
    free = [TextExample(str(i), f"text {i}", ("same",), 0, ("same",)) for i in range(12)]
    assert degenerate_notes(Split(free, {"0": free}, free)) == []


def test_examples_with_several_classes_have_all_of_them():
    def seen(*labels: str) -> Any:
        return SimpleNamespace(label=labels[0] if labels else "nothing", all_labels=labels)

    both, one, none = seen("cell", "rim"), seen("cell"), seen()
    assert degenerate_notes(Split([both], {"0": [both]}, [one, both] * 5)) == []
    assert degenerate_notes(Split([none, both], {"0": [one]}, [both] * 10))[-1] == "no client has an example of 'rim'"
    alone = [one, none]
    assert degenerate_notes(Split(alone, {"0": alone}, alone * 5)) == []
