"""Who is asked, who is left out, and what a simulation sees of its clients."""

import pytest
import torch

from fedcollm.errors import NonFiniteError
from fedcollm.federation.cohort import Simulation, another, failures_of, without
from fedcollm.messages import Failure, Score, TrainRequest

REQUEST = TrainRequest(2, {})


class Local:
    """A transport within one process whose client b has failed."""

    def clients(self):
        return ["a", "b"]

    def ask(self, requests):
        yield from (Failure(client, "asked") for client in requests)

    def failures(self):
        return {"b": NonFiniteError("the loss became nan\x1b[2J")}

    def own_scores(self):
        return {"a": Score({"acc": 1.0}, 2)}


class Remote:
    """The same over a network, where nobody sees it."""

    clients, ask = Local.clients, Local.ask


def test_client_that_is_left_out_is_not_asked_and_named():
    ask = without(Local().ask, {"b": torch.tensor([7]), "z": torch.tensor([1])})
    answers = list(ask({"a": REQUEST, "b": REQUEST}))
    assert answers == [Failure("b", "left out since it spoiled round 7"), Failure("a", "asked")]


def test_simulation_names_who_failed_and_ends_if_all_did():
    assert isinstance(Local(), Simulation)
    assert failures_of(Local(), ["a", "b"], "round 2") == (
        "round 2: client b changed nothing: the loss became nan [2J",
    )
    assert failures_of(Local(), ["a"], "round 2") == ()
    with pytest.raises(NonFiniteError, match="the loss became nan"):
        failures_of(Local(), ["b"], "round 2")
    assert failures_of(Remote(), ["a", "b"], "round 2") == ()  # pyright: ignore[reportArgumentType]


def test_next_adapter_is_never_exactly_that_of_before():
    before = {"v": torch.tensor([1.0, 2.0]), "w": torch.tensor([[3.0]])}
    assert another({**before, "w": torch.tensor([[4.0]])}, before) == {**before, "w": torch.tensor([[4.0]])}
    changed = another(before, before)
    assert changed["v"].tolist() == [1.0 + 2.0**-23, 2.0]
    assert changed["w"].tolist() == [[3.0]]
    assert before["v"].tolist() == [1.0, 2.0]
