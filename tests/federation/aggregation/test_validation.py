"""The weighted mean by hand on adapters of three numbers, in a fixed order, an update at a time."""

import dataclasses
import itertools
import math
import weakref

import pytest
import torch
from tests.parties import mean_of

from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.validation import Expected, in_order, validate_updates
from fedcollm.messages import ClientUpdate, Failure, PhaseAnswer, Score, TrainRequest


def update(
    client: str, values: list[float], examples: int = 1, loss: float = 0.0, dtype=torch.float32, **more
) -> ClientUpdate:
    return ClientUpdate(client, 1, {"w": torch.tensor(values, dtype=dtype)}, examples, loss, **more)


A = update("a", [1.0, 2.0, 3.0], examples=1, loss=1.0)
B = update("b", [5.0, -2.0, 0.0], examples=3, loss=2.0)


# --- the mean ---


def test_mean_is_weighted_by_examples():
    # (1 * 1 + 3 * 5) / 4, (1 * 2 - 3 * 2) / 4, (1 * 3 + 0) / 4
    assert mean_of([A, B]).adapter["w"].tolist() == [4.0, -1.0, 0.75]


def test_uniform_mean_ignores_the_number_of_examples():
    assert mean_of([A, B], weighted=False).adapter["w"].tolist() == [3.0, 0.0, 1.5]


def test_mean_of_one_client_is_its_adapter_bit_for_bit():
    odd = update("a", [0.1, 1 / 3, 1e-30], examples=7)
    assert torch.equal(mean_of([odd]).adapter["w"], odd.adapter["w"])


def test_every_tensor_is_averaged():
    one = ClientUpdate("a", 1, {"w": torch.tensor([1.0]), "v": torch.tensor([[2.0]])}, 1, 0.0)
    two = ClientUpdate("b", 1, {"w": torch.tensor([3.0]), "v": torch.tensor([[6.0]])}, 1, 0.0)
    mean = mean_of([one, two]).adapter
    assert {name: tensor.tolist() for name, tensor in mean.items()} == {"w": [2.0], "v": [[4.0]]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_are_not_changed(dtype):
    first = update("a", [1.0, 2.0, 3.0], examples=2, dtype=dtype)
    second = update("b", [5.0, -2.0, 0.0], examples=3, dtype=dtype)
    mean_of([first, second])
    assert first.adapter["w"].tolist() == [1.0, 2.0, 3.0]
    assert second.adapter["w"].tolist() == [5.0, -2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mean_has_the_updates_dtype(dtype):
    mean = mean_of([update("a", [1.0], dtype=dtype), update("b", [2.0], dtype=dtype)]).adapter["w"]
    assert mean.dtype == dtype
    assert mean.item() == 1.5


def test_half_precision_is_summed_in_double():
    # in bfloat16 256 + 1 is 256, so a sum in that dtype would stay there: 256 / 257 = 0.996, not 512 / 257 = 1.992
    updates = [
        update("a", [256.0], dtype=torch.bfloat16),
        *(update(str(i), [1.0], dtype=torch.bfloat16) for i in range(256)),
    ]
    assert mean_of(updates).adapter["w"].item() == pytest.approx(512 / 257, rel=0.01)


def test_loss_is_a_mean_over_examples_whatever_the_weights():
    assert mean_of([A, B]).loss == 1.75  # (1 * 1 + 3 * 2) / 4
    assert mean_of([A, B], weighted=False).loss == 1.75


def test_score_is_a_mean_over_clients():
    updates = [
        update("a", [0.0], score=Score({"acc": 1.0}, 2)),
        update("b", [0.0], examples=9, score=Score({"acc": 8.0}, 8)),
    ]
    assert mean_of(updates).clients_score == 0.75  # 1/2 and 8/8


def test_score_is_none_if_none_was_asked_for():
    assert mean_of([A, B]).clients_score is None


def test_seconds_are_sums_and_participants_keep_their_order():
    updates = [
        update("b", [0.0], seconds={"clients": 1.0, "evaluation": 0.5}),
        update("a", [0.0], seconds={"clients": 2.0, "evaluation": 0.25}),
    ]
    result = mean_of(updates)
    assert result.seconds == {"clients": 3.0, "evaluation": 0.75}
    assert result.participants == ("b", "a")


def test_no_updates_are_refused():
    with pytest.raises(RoundFailedError, match="no client's update could be used"):
        mean_of([])


# --- order ---


def awkward() -> list[ClientUpdate]:
    """Four updates whose sum in double precision depends on its order."""
    values = {"a": 1e30, "b": 1.0, "c": -1e30, "d": 1.0}
    return [update(client, [value, -value, value / 3], loss=value) for client, value in values.items()]


def test_awkward_sums_do_depend_on_their_order():
    updates = awkward()
    assert mean_of(updates).adapter["w"].tolist() != mean_of([updates[i] for i in (0, 2, 1, 3)]).adapter["w"].tolist()


@pytest.mark.parametrize("arrival", list(itertools.permutations(range(4))))
def test_mean_is_bitwise_the_same_for_any_order_of_arrival(arrival):
    updates = awkward()
    expected = mean_of(updates)
    arrived = mean_of(in_order((updates[i] for i in arrival), "abcd"))
    assert torch.equal(arrived.adapter["w"], expected.adapter["w"])
    assert arrived.loss == expected.loss
    assert arrived.participants == ("a", "b", "c", "d")


def test_updates_are_passed_on_as_early_as_the_order_allows():
    seen: list[str] = []

    def arriving():
        for client in ("b", "a", "d", "c"):
            seen.append(f"{client} came")
            yield update(client, [0.0])

    for passed in in_order(arriving(), ["a", "b", "c", "d"]):
        seen.append(f"{passed.client} passed")
    assert seen == ["b came", "a came", "a passed", "b passed", "d came", "c came", "c passed", "d passed"]


def test_missing_client_does_not_hold_back_the_others():
    updates = awkward()
    assert [u.client for u in in_order([updates[3], updates[1], updates[2]], "abcd")] == ["b", "c", "d"]


def test_client_that_was_not_asked_is_left_out():
    assert [u.client for u in in_order(awkward(), "ac")] == ["a", "c"]


def test_aggregation_holds_one_update_at_a_time():
    sent: list[weakref.ref[ClientUpdate]] = []
    alive: list[int] = []

    def arriving():
        for client in "abcdef":
            alive.append(sum(reference() is not None for reference in sent))
            new = update(client, [1.0, 2.0, 3.0])
            sent.append(weakref.ref(new))
            yield new
            del new

    assert mean_of(in_order(arriving(), "abcdef")).adapter["w"].tolist() == [1.0, 2.0, 3.0]
    assert alive == [0, 1, 1, 1, 1, 1]


# --- answers that are refused ---

REQUEST = TrainRequest(1, {"w": torch.zeros(3)})


def refused(*answers, ids=("a", "b"), max_update_norm=100.0) -> dict[str, str]:
    """Reasons by client, when these answers follow one good update of client a."""
    lost: dict[str, str] = {}
    kept = list(validate_updates([A, *answers], Expected(REQUEST, ids, max_update_norm), lost))
    assert [u.client for u in kept] == ["a"]
    return lost


def test_good_updates_are_admitted_as_they_are():
    lost: dict[str, str] = {}
    assert list(validate_updates([B, A], Expected(REQUEST, ["a", "b"], 100.0), lost)) == [B, A]
    assert lost == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (update("b", [1.0, math.nan, 0.0]), "tensor w is not finite"),
        (update("b", [1.0, math.inf, 0.0]), "tensor w is not finite"),
        (update("b", [1.0, 2.0]), "tensor w is [(2,), 'torch.float32'], not [(3,), 'torch.float32']"),
        (update("b", [1.0, 2.0, 3.0], dtype=torch.float64), "not [(3,), 'torch.float32']"),
        (ClientUpdate("b", 1, {}, 1, 0.0), "tensor w is missing"),
        (ClientUpdate("b", 1, {"w": torch.zeros(3), "v": torch.zeros(1)}, 1, 0.0), "tensor v is unknown"),
        (
            update("b", [60.0, 80.1, 0.0]),
            "the adapter changed by 100.1 (L2 norm), more than federation.max_update_norm 100",
        ),
        (ClientUpdate("b", 0, {"w": torch.zeros(3)}, 1, 0.0), "an update for round 0, not 1"),
        (update("b", [0.0, 0.0, 0.0], examples=0), "0 examples"),
        (update("b", [0.0, 0.0, 0.0], examples=-5), "-5 examples"),
        (update("b", [0.0, 0.0, 0.0], loss=math.nan), "a loss of nan"),
        (Failure("b", "connection lost"), "connection lost"),
        (PhaseAnswer("b", "00", {}), "not an update"),
    ],
)
def test_faulty_answer_is_refused_with_its_reason(answer, reason):
    lost = refused(answer)
    assert list(lost) == ["b"]
    assert reason in lost["b"]


def test_change_is_measured_from_what_was_sent():
    lost: dict[str, str] = {}
    request = TrainRequest(1, {"w": torch.tensor([60.0, 80.0, 0.0])})
    assert list(validate_updates([update("a", [60.0, 80.0, 1.0])], Expected(request, ["a"], 1.0), lost))
    assert lost == {}


def test_unknown_client_is_refused():
    assert refused(update("z", [0.0, 0.0, 0.0])) == {"z": "unknown client", "b": "no answer"}


def test_second_update_of_a_client_is_refused():
    assert refused(update("a", [9.0, 9.0, 9.0])) == {"a": "a second update", "b": "no answer"}


def test_client_that_does_not_answer_is_named():
    assert refused() == {"b": "no answer"}


def test_client_whose_test_set_has_no_object_is_kept():
    update = dataclasses.replace(A, score=Score({"ap50": 1.0, "map": 0.0}, 4, counts={"map": 0}))
    lost: dict[str, str] = {}
    assert list(validate_updates([update, B], Expected(REQUEST, ["a", "b"], 100.0), lost)) == [update, B]
    assert not lost


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": 10**400},
        {"examples": 2**20 + 1},
        {"loss": 1e300},
        {"score": Score({"accuracy": math.nan}, 4)},
        {"score": Score({"accuracy": math.inf}, 4)},
        {"score": Score({"accuracy": 5.0}, 4)},
        {"score": Score({"accuracy": 1.0}, 0)},
        {"score": Score({"accuracy": 1.0}, 10**400)},
        {"score": Score({}, 4)},
        {"score": Score({"words": 9.0}, 4, counts={"words": 8})},
        {"score": Score({"words": 9.0}, 10, counts={"words": 8})},
        {"score": Score({"words": 1.0, "wer": 8001.0}, 4, counts={"words": 8, "wer": 8})},
        {"score": Score({"words": 1.0, "wer": 5.0}, 4, counts={"words": 8})},
        {"score": Score({"words": 1.0, "wer": math.nan}, 4, counts={"words": 8, "wer": 8})},
        {"score": Score({"words": 1.0}, 4, counts={"words": 0})},
        {"score": Score({"ap50": 1.0, "map": 1.0}, 4, counts={"map": 0})},
        {"score": Score({"ap50": 1.0, "map": 0.0}, 4, counts={"map": -1})},
        {"score": Score({"words": 1.0}, 4, counts={"words": 2**31 + 1})},
        {"score": Score({"words": 1.0}, 4, counts={"words": 8, "letters": 8})},
        {"seconds": {"clients": math.inf}},
        {"seconds": {"clients": -1.0}},
        {"seconds": {"[/x]": 1.0}},
        {"seconds": {"clients": 1.0, "elsewhere": 1.0}},
        {"score": Score({"[/x]" * 30: 1.0}, 4)},
        {"score": Score({"a\x1b[2J": 1.0}, 4)},
        {"score": Score({f"metric {i}": 1.0 for i in range(51)}, 4)},
        {"score": "no score"},
        {"seconds": None},
        {"adapter": None},
        {"examples": "3"},
    ],
)
def test_numbers_that_no_honest_client_sends_lose_the_client_and_nothing_else(changes):
    lost: dict[str, str] = {}
    bad = dataclasses.replace(A, **changes)
    assert list(validate_updates([bad, B], Expected(REQUEST, ["a", "b"], 100.0), lost)) == [B]
    assert list(lost) == ["a"]
