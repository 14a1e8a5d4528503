"""Round 1 is trained once, and comes from the cache in every other run that starts from the same θ."""

import dataclasses

import torch

from fedcollm.messages import ClientUpdate, Failure, Score, TrainRequest
from fedcollm.transports.caching import CachingTransport

UPDATE = ClientUpdate(
    "a", 1, {"w": torch.tensor([[1.0, 1 / 3]])}, 5, 0.1, Score({"acc": 2.0, "acc_norm": 1 / 3}, 7), {"clients": 1 / 7}
)


class Counting:
    """Answers with `UPDATE`, or with what it is given instead."""

    def __init__(self, answer=UPDATE):
        self.answer = answer
        self.asked = []

    def clients(self):
        return ["a", "b"]

    def ask(self, requests):
        for client, request in requests.items():
            self.asked.append((client, request.round_index))
            yield dataclasses.replace(self.answer, client=client)


def request(round_index=1, value=0.0, **rest) -> TrainRequest:
    return TrainRequest(round_index, {"w": torch.tensor([[value, 0.0]])}, **rest)


def caching(inner, tmp_path, **settings) -> CachingTransport:
    small = {"learning_rate": 0.1}
    return CachingTransport(inner, tmp_path / "cache", {"a": small, "b": small} | settings)


def test_a_second_run_gets_the_same_bits_without_training(tmp_path):
    first, second = Counting(), Counting()
    asked = {"a": request(), "b": request(run="one")}
    trained = list(caching(first, tmp_path).ask(asked))
    cached = list(caching(second, tmp_path).ask({"a": request(), "b": request(run="another")}))
    assert (first.asked, second.asked) == ([("a", 1), ("b", 1)], [])
    assert [update.client for update in cached] == ["a", "b"]
    for one, two in zip(trained, cached, strict=True):
        assert torch.equal(one.adapter["w"], two.adapter["w"])
        assert dataclasses.replace(one, adapter={}) == dataclasses.replace(two, adapter={})


def test_an_update_without_a_score_is_cached_too(tmp_path):
    unscored = dataclasses.replace(UPDATE, score=None)
    for _ in range(2):
        (answer,) = caching(Counting(unscored), tmp_path).ask({"a": request(evaluate=False)})
        assert answer.score is None


def test_whatever_an_update_depends_on_tells_it_from_others(tmp_path):
    list(caching(Counting(), tmp_path).ask({"a": request()}))
    inner = Counting()
    list(caching(inner, tmp_path).ask({"a": request(value=0.5)}))  # θ
    list(caching(inner, tmp_path).ask({"a": request(evaluate=False)}))
    list(caching(inner, tmp_path, a={"learning_rate": 0.5}).ask({"a": request()}))
    list(caching(inner, tmp_path).ask({"b": request()}))
    assert len(inner.asked) == 4


def test_later_rounds_and_failures_are_not_cached(tmp_path):
    inner = Counting()
    for _ in range(2):
        list(caching(inner, tmp_path).ask({"a": request(2)}))
    assert inner.asked == [("a", 2), ("a", 2)]
    broken = Counting(Failure("a", "no"))
    for _ in range(2):
        assert list(caching(broken, tmp_path).ask({"a": request()})) == [Failure("a", "no")]
    assert len(broken.asked) == 2


def test_nothing_but_whole_files_is_left(tmp_path):
    list(caching(Counting(), tmp_path).ask({"a": request()}))
    assert len([file for file in (tmp_path / "cache").iterdir() if not file.name.endswith(".lock")]) == 1
