import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import SHARED, needs_shared

from fedcollm.config import PartitionConfig, TaskConfig
from fedcollm.data.partition import check_classes, describe, partition, split
from fedcollm.data.pool import Pool, Split
from fedcollm.data.sources.qa import load_qa
from fedcollm.errors import UserError
from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.audio.transcripts import SpeechExample
from fedcollm.modalities.text.examples import TextExample

KINDS = ["iid", "dirichlet", "shards", "natural", "quantity", "pooled"]
SMALL = "the test set has only 6 examples, so that one of them is 17 % of a score"
quickly = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def example(i: int, label: int = 0, group: str | None = None, prompt: str | None = None) -> TextExample:
    return TextExample(str(i), prompt or f"text {i}", ("a", "b", "c"), label, ("a", "b", "c"), group)


def examples(n: int, groups: int = 4) -> list[TextExample]:
    return [example(i, i % 3, f"g{i % groups}") for i in range(n)]


def free(n: int) -> list[TextExample]:
    return [TextExample(str(i), f"text {i}", (f"answer {i}",), 0, (f"answer {i}",)) for i in range(n)]


def config(**keys: Any) -> TaskConfig:
    kind = keys.pop("kind", "iid")
    sizes = {"clients": 2, "private_size": 5, "public_size": 4, "unlabelled_size": 3, "test_size": 6}
    return TaskConfig(**{"partition": PartitionConfig(kind=kind), **sizes, **keys})


def cut(pool: Sequence[Any], clients: int, kind: str, seed: int = 0, **keys: Any) -> dict[str, list[Any]]:
    return partition(pool, clients, PartitionConfig.model_validate({"kind": kind, **keys}), seed)


def ids(parts: Sequence[TextExample]) -> list[str]:
    return [part.id for part in parts]


def message_of(kind: str, pool: Sequence[Any], clients: int, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        cut(pool, clients, kind, **keys)
    return str(error.value)


# --- partition: every kind


@quickly
@given(
    n=st.integers(40, 90),
    clients=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
def test_every_example_goes_to_one_client_and_the_seed_decides(n: int, clients: int, kind: str, seed: int) -> None:
    pool = examples(n)
    parts = cut(pool, clients, kind, seed, alpha=1.0)
    assert list(parts) == (["0"] if kind == "pooled" else [str(i) for i in range(clients)])
    assert sorted(ids([e for part in parts.values() for e in part])) == sorted(ids(pool))
    assert all(parts.values())
    assert cut(pool, clients, kind, seed, alpha=1.0) == parts


@quickly
@given(
    n=st.integers(8, 60), clients=st.integers(1, 8), shards=st.integers(1, 3), kind=st.sampled_from(["iid", "shards"])
)
def test_iid_and_shards_have_equal_sizes(n: int, clients: int, shards: int, kind: str) -> None:
    if kind == "shards" and n < clients * shards:
        n = clients * shards
    sizes = [len(part) for part in cut(examples(n), clients, kind, shards=shards).values()]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pooled"])
def test_another_seed_gives_another_partition(kind: str) -> None:
    pool = examples(60, groups=9)
    assert cut(pool, 3, kind, 0, alpha=1.0) != cut(pool, 3, kind, 1, alpha=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_on_the_screen(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    cut(examples(40), 4, kind)
    sys.stderr.flush()
    assert capfd.readouterr() == ("", "")


def test_pooled_is_all_in_order() -> None:
    pool = examples(10)
    assert cut(pool, 4, "pooled") == {"0": pool}


def test_quantity_grows_linearly() -> None:
    parts = cut(examples(100), 4, "quantity")
    assert {client: len(part) for client, part in parts.items()} == {"0": 10, "1": 20, "2": 30, "3": 40}


def test_shards_give_few_labels_a_client() -> None:
    pool = [example(i, i // 20) for i in range(60)]
    parts = cut(pool, 3, "shards", shards=1)
    assert sorted(tuple({e.label for e in part}) for part in parts.values()) == [("a",), ("b",), ("c",)]


def test_dirichlet_is_more_skewed_for_a_smaller_alpha() -> None:
    def largest_share(alpha: float) -> float:
        parts = cut(examples(300), 3, "dirichlet", alpha=alpha)
        return max(max(Counter(e.label for e in part).values()) / len(part) for part in parts.values())

    assert largest_share(1000.0) < 0.4
    assert largest_share(0.1) > 0.7


def test_sizes_under_dirichlet_depend_on_the_seed() -> None:
    sizes = [tuple(len(part) for part in cut(examples(60), 3, "dirichlet", seed).values()) for seed in range(4)]
    assert len(set(sizes)) == 4


def test_natural_clients_are_the_groups_in_the_order_of_their_names() -> None:
    sizes = {"north": 5, "south": 9, "east": 2}
    pool = [example(10 * k + i, 0, group) for k, group in enumerate(sizes) for i in range(sizes[group])]
    parts = cut(pool, 3, "natural")
    assert {client: {e.group for e in part} for client, part in parts.items()} == {
        "0": {"east"},
        "1": {"north"},
        "2": {"south"},
    }


def test_whole_groups_are_dealt_out_largest_first() -> None:
    sizes = {"w": 1, "x": 2, "y": 3, "z": 4}
    pool = [example(10 * k + i, 0, group) for k, group in enumerate(sizes) for i in range(sizes[group])]
    parts = cut(pool, 2, "natural")
    assert {client: {e.group for e in part} for client, part in parts.items()} == {
        "0": {"z", "x"},
        "1": {"y", "w"},
    }


# --- partition: what cannot be


def test_fewer_groups_than_clients() -> None:
    message = message_of("natural", examples(40), 5)
    assert "the data has 4 groups (g0, g1, g2, g3), fewer than task.clients 5. Lower task.clients to 4" in message


def test_no_groups() -> None:
    pool = [example(0, 0, "g"), example(1), example(2)]
    assert "2 of 3 examples have no group. Check task.format.group" in message_of("natural", pool, 2)


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_no_labels(kind: str) -> None:
    pool = [example(0), example(1).without_label()]
    assert f"task.partition.kind {kind}: 1 of 2 examples have no label" in message_of(kind, pool, 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pooled"])
def test_fewer_examples_than_clients(kind: str) -> None:
    assert message_of(kind, examples(3), 4).startswith(
        "3 private examples are too few for 4 clients. Lower task.clients"
    )


def test_dirichlet_that_leaves_a_client_empty() -> None:
    message = message_of("dirichlet", [example(i) for i in range(9)], 8, alpha=0.01)
    assert "task.partition.kind dirichlet can't divide 9 examples among 8 clients" in message
    assert "raise task.partition.alpha (0.01) or task.private_size, or lower task.clients" in message


def test_dirichlet_over_free_text() -> None:
    assert "40 different answers in 40 examples are too many to be classes" in message_of("dirichlet", free(40), 2)


def test_more_shards_than_examples() -> None:
    message = message_of("shards", examples(9), 5, shards=2)
    assert "task.partition.kind shards can't divide 9 examples among 5 clients" in message
    assert "lower task.partition.shards (2)" in message


def test_quantity_that_leaves_a_client_empty() -> None:
    message = message_of("quantity", examples(5), 4)
    assert "task.partition.kind quantity can't divide 5 examples among 4 clients" in message
    assert "raise task.private_size, or lower task.clients" in message


# --- split


def parts_of(parts: Split) -> list[str]:
    return ids(parts.public) + ids(parts.test) + [i for part in parts.private.values() for i in ids(part)]


def test_sizes_and_disjoint_parts() -> None:
    parts = split(Pool(examples(23)), config(), 0)
    assert len(parts.public) == 7
    assert [e.label is None for e in parts.public] == [False] * 4 + [True] * 3
    assert {client: len(part) for client, part in parts.private.items()} == {"0": 5, "1": 5}
    assert len(parts.test) == 6
    assert sorted(parts_of(parts)) == sorted(ids(examples(23)))
    assert (parts.duplicates_removed, parts.notes) == (0, [SMALL])


def test_a_split_depends_on_the_seed_alone() -> None:
    pool = Pool(examples(60), [example(i, i % 3) for i in range(100, 140)])
    random.seed(1)
    first = split(pool, config(), 0)
    random.seed(2)
    assert split(pool, config(), 0) == first
    other = split(pool, config(), 1)
    assert set(ids(other.test)) != set(ids(first.test))
    assert set(ids(other.public)) != set(ids(first.public))


@pytest.mark.parametrize("kind", KINDS)
def test_private_examples_do_not_depend_on_the_kind(kind: str) -> None:
    def private(kind: str) -> set[str]:
        parts = split(Pool(examples(60)), config(kind=kind, private_size=20, clients=2), 0)
        return {e.id for part in parts.private.values() for e in part}

    assert private(kind) == private("iid")


def test_private_and_test_parts_stay_when_the_public_part_grows() -> None:
    small, large = (split(Pool(examples(60)), config(unlabelled_size=size), 0) for size in (0, 20))
    assert large.private == small.private
    assert large.test == small.test
    assert large.public[:4] == small.public


def test_public_part_stays_when_the_private_part_grows() -> None:
    small, large = (split(Pool(examples(60)), config(private_size=size), 0) for size in (5, 20))
    assert large.public == small.public


def test_a_given_test_set_is_sampled_in_its_order() -> None:
    test = [example(i, i % 3) for i in range(100, 120)]
    parts = split(Pool(examples(17), test), config(), 0)
    assert len(parts.test) == 6
    assert ids(parts.test) == sorted(ids(parts.test))
    assert all(int(i) >= 100 for i in ids(parts.test))
    assert split(Pool(examples(40), test), config(), 0).test == parts.test


def test_a_test_set_that_is_too_small_is_used_whole_with_a_note() -> None:
    test = [example(i) for i in range(100, 104)]
    parts = split(Pool(examples(17), test), config(), 0)
    assert parts.test == test
    assert parts.notes[0] == "the test set has 4 examples, fewer than task.test_size 6; all are used"


def test_duplicates_leave_the_training_data_and_stay_in_the_test_set() -> None:
    train = [*examples(17), example(90, prompt="text 3"), example(91, 1, prompt="asked"), example(92, prompt="ASKED")]
    test = [example(i) for i in range(100, 106)] + [example(106, prompt="asked"), example(107, prompt="asked")]
    parts = split(Pool(train, test), config(test_size=7), 0)
    assert parts.duplicates_removed == 3
    assert ids(parts.test) == ["100", "101", "102", "103", "104", "105", "106"]
    assert not {"90", "91", "107"} & set(parts_of(parts))
    assert parts.notes[0] == (
        "3 of 28 examples were dropped because another one with the same input is kept: 1 of the test set, 2 of the "
        "training data; 1 of them had another label than the one that is kept, such as id 91 of the training data (id "
        "106 of the test set is kept), so that one of the two labels is wrong"
    )
    assert not any("dropped" in note for note in parts.notes[1:])


def test_public_examples_of_their_own_leave_the_training_data_to_the_clients() -> None:
    own = [example(i, i % 3) for i in range(100, 109)]
    parts = split(Pool(examples(16), public=own), config(), 0)
    assert [e.label is None for e in parts.public] == [False] * 4 + [True] * 3
    assert set(ids(parts.public)) < set(ids(own))
    assert ids(parts.public) != ids(own)[:7]
    assert sorted(ids(parts.test) + [i for part in parts.private.values() for i in ids(part)]) == sorted(
        ids(examples(16))
    )
    assert split(Pool(examples(16), public=own), config(), 0) == parts
    assert set(ids(split(Pool(examples(16), public=own), config(), 1).public)) != set(ids(parts.public))


def test_public_examples_that_stand_elsewhere_are_dropped() -> None:
    own = [example(90, prompt="text 3"), example(91, prompt="asked"), *[example(i) for i in range(100, 107)]]
    test = [example(i) for i in range(200, 206)] + [example(206, prompt="asked")]
    parts = split(Pool(examples(10), test, [*own, example(107, prompt="text 106")]), config(test_size=7), 0)
    assert parts.duplicates_removed == 3
    assert sorted(ids(parts.public)) == [str(i) for i in range(100, 107)]
    assert parts.test == test


def test_private_and_test_parts_do_not_depend_on_the_public_examples() -> None:
    few, many = (split(Pool(examples(30), public=[example(i) for i in range(100, n)]), config(), 0) for n in (107, 150))
    assert (few.private, few.test) == (many.private, many.test)


def test_a_server_needs_no_private_examples_beside_public_ones() -> None:
    own = [example(i) for i in range(100, 107)]
    parts = split(Pool(examples(6), public=own), config(), 0, private=False)
    assert (len(parts.public), parts.private, len(parts.test)) == (7, {}, 6)


@pytest.mark.parametrize(("with_public", "size"), [(False, 10), (True, 14)])
def test_pooled_client_has_all_and_the_labelled_public_part_if_asked(with_public: bool, size: int) -> None:
    kind = PartitionConfig(kind="pooled", with_public=with_public)
    parts = split(Pool(examples(23)), config(partition=kind), 0)
    separate = split(Pool(examples(23)), config(), 0)
    assert list(parts.private) == ["0"]
    assert len(parts.private["0"]) == size
    assert parts.private["0"][10:] == (parts.public[:4] if with_public else [])
    assert set(ids(parts.private["0"][:10])) == {e.id for part in separate.private.values() for e in part}
    assert (parts.public, parts.test) == (separate.public, separate.test)


def test_natural_notes_say_who_is_who() -> None:
    parts = split(Pool(examples(60, groups=8)), config(kind="natural", private_size=20), 0)
    assert len(parts.notes) == 3
    assert parts.notes[0].startswith("client 0 holds g")
    two = split(Pool(examples(60, groups=2)), config(kind="natural", private_size=20), 0)
    assert two.notes == ["client 0 holds g0", "client 1 holds g1", SMALL]


def test_clients_that_are_not_given_are_the_groups_of_a_natural_partition() -> None:
    """Three of five groups are left where two are too small to reach the private part."""
    parts = split(Pool(examples(60, groups=5)), config(kind="natural", clients=None), 0)
    assert [note for note in parts.notes if "holds" in note] == [f"client {i} holds g{i}" for i in range(5)]
    rare = [example(i, i % 3, "xyz"[i % 3] if i > 1 else f"rare{i}") for i in range(400)]
    assert len(split(Pool(rare), config(kind="natural", clients=None), 0).private) == 3
    assert TaskConfig(partition=PartitionConfig(kind="natural")).clients is None
    assert (TaskConfig().clients, TaskConfig(clients=None).clients) == (4, 4)


def test_many_groups_are_not_all_named() -> None:
    parts = split(Pool(examples(60, groups=30)), config(kind="natural", private_size=20), 0)
    assert " and " in parts.notes[0]
    assert parts.notes[0].endswith(" more")


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            Pool(examples(22)),
            "23 training examples are needed (task.clients 2 × task.private_size 5 + task.public_size 4 + "
            "task.unlabelled_size 3 + task.test_size 6), but there are 22. Lower one of these keys "
            "(task.private_size: 4, task.public_size: 4, task.unlabelled_size: 3, task.test_size: 6 would fit)",
        ),
        (
            Pool(examples(16), examples(90)[50:]),
            "17 training examples are needed (task.clients 2 × task.private_size 5 + task.public_size 4 + "
            "task.unlabelled_size 3), but there are 16. Lower",
        ),
        (
            Pool(examples(15), public=examples(90)[50:]),
            "16 training examples are needed (task.clients 2 × task.private_size 5 + task.test_size 6), but there are "
            "15. Lower",
        ),
        (
            Pool(examples(16), public=examples(56)[50:]),
            "7 public examples are needed (task.public_size 4 + task.unlabelled_size 3), but there are 6. Lower",
        ),
        (Pool(examples(22) * 2), "but there are 22 (after 22 duplicates were dropped)."),
        (Pool([]), "but there are 0."),
    ],
)
def test_not_enough_examples(pool: Pool, message: str) -> None:
    with pytest.raises(UserError) as error:
        split(pool, config(), 0)
    assert message in str(error.value)


def test_an_empty_test_set() -> None:
    with pytest.raises(UserError, match="test set"):
        split(Pool(examples(30), []), config(), 0)


def test_free_completions_split_too() -> None:
    parts = split(Pool(free(60)), config(private_size=20), 0)
    assert {client: len(part) for client, part in parts.private.items()} == {"0": 20, "1": 20}


# --- describe and check_classes


def test_describe_counts_labels() -> None:
    a, b, c = example(0, 0), example(1, 1), example(2, 2)
    parts = Split([a, b, c.without_label()], {"0": [b, a, b], "1": [c]}, [a, b], 5, ["note"])
    assert describe(parts) == {
        "clients": {"0": {"a": 1, "b": 2}, "1": {"c": 1}},
        "public": {"a": 1, "b": 1},
        "unlabelled": 1,
        "test": 2,
        "duplicates_removed": 5,
        "notes": ["note"],
    }
    assert json.loads(json.dumps(describe(parts))) == describe(parts)


def test_describe_does_not_list_free_answers() -> None:
    many = free(33)
    parts = Split(many[:1], {"0": many[1:32]}, many[32:])
    assert describe(parts)["clients"] == {"0": {"all": 31}}
    assert describe(parts)["public"] == {"all": 1}
    few = Split([], {"0": many[:2]}, many[32:])
    assert describe(few)["clients"] == {"0": {"all": 2}}


def test_describe_lists_many_classes_of_a_choice() -> None:
    names = tuple(f"{i:02}" for i in range(40))
    classes = [TextExample(name, name, names, i, names) for i, name in enumerate(names)]
    assert describe(Split([], {"0": classes}, []))["clients"] == {"0": dict.fromkeys(names, 1)}


def test_check_classes() -> None:
    check_classes([example(0, 0), example(1, 1)])
    with pytest.raises(UserError, match=r"training data: all 2 .*'a'"):
        check_classes([example(0), example(1)])
    with pytest.raises(UserError, match=r"f: all 0 .*no label"):
        check_classes([], "f")


# --- the paper's data


@needs_shared
def test_the_papers_openbookqa() -> None:
    keys = {"name": "openbookqa", "clients": 4, "private_size": 900, "public_size": 900, "unlabelled_size": 0}
    parts = split(load_qa("openbookqa", SHARED), config(kind="dirichlet", test_size=498, **keys), 0)
    assert len(parts.test) == 498
    assert parts.duplicates_removed == 5  # question and choices; 151 of the questions alone
    assert sum(map(len, parts.private.values())) == 3600
    assert not {e.content for e in parts.test} & {e.content for e in parts.public + parts.private["0"]}


def test_unlabelled_examples_of_their_own_leave_the_rest_to_the_others() -> None:
    own = [example(i, i % 3).without_label() for i in range(200, 210)]
    parts = split(Pool(examples(20), unlabelled=own), config(), 0)
    assert [e.label is None for e in parts.public] == [False] * 4 + [True] * 3
    assert set(ids(parts.public[4:])) < set(ids(own))
    assert sorted(
        ids(parts.public[:4]) + ids(parts.test) + [i for p in parts.private.values() for i in ids(p)]
    ) == sorted(ids(examples(20)))
    labelled = split(Pool(examples(20)), config(unlabelled_size=0), 0)
    assert (parts.public[:4], parts.private, parts.test) == (labelled.public, labelled.private, labelled.test)


def test_unlabelled_examples_that_stand_elsewhere_are_dropped_and_too_few_are_refused() -> None:
    own = [example(90, prompt="text 3"), *[example(i) for i in range(200, 203)]]
    parts = split(Pool(examples(20), unlabelled=[e.without_label() for e in own]), config(), 0)
    assert sorted(ids(parts.public[4:])) == ["200", "201", "202"]
    with pytest.raises(UserError, match=r"4 unlabelled examples are needed \(task.unlabelled_size 4\)"):
        split(Pool(examples(20), unlabelled=own), config(unlabelled_size=4), 0)


def test_free_answers_are_not_written_into_the_summary():
    clips = [SpeechExample(str(i), Recording(b"", str(i)), f"patient {i} is ill") for i in range(4)]
    summary = describe(Split(clips[:1], {"a": clips[1:3]}, clips[3:]))
    assert (summary["clients"], summary["public"]) == ({"a": {"all": 2}}, {"all": 1})
    assert "patient" not in json.dumps(summary)
