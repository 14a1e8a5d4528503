"""A client's update is a function of the request, its own data and its seed."""

import copy
import dataclasses
import math

import peft
import pytest
import torch
from tests import parties
from tests.conftest import tiny_llama
from tests.parties import add_adapter

from fedcollm.config.augmentation import AugmentationConfig
from fedcollm.errors import RefusalError
from fedcollm.federation import client as client_module
from fedcollm.federation.client import Client
from fedcollm.federation.limits import Limits
from fedcollm.federation.operator import Operator
from fedcollm.federation.upload_format import UploadFormat, component_axis, first
from fedcollm.messages import Adapter, ClientUpdate, Score, TrainRequest
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy
from fedcollm.transports.wire import encode


def example(noun: str, answer: int) -> TextExample:
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), answer, ("animal", "colour"))


ANIMALS = [example(noun, 0) for noun in ("cat", "dog", "bird")]
COLOURS = [example(noun, 1) for noun in ("red", "green", "blue", "good", "bad")]


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


@pytest.fixture
def slm(llama) -> peft.PeftModel:
    """With dropout, so that randomness would show."""
    return add_adapter(llama, rank=2, dropout=0.3, seed=1)


def client(task, slm, name: str = "a", examples=ANIMALS, **options) -> Client:
    return parties.client(
        name, task, slm, examples, ANIMALS + COLOURS, **{"batch_size": 2, "learning_rate": 1e-2} | options
    )


def equal(one: Adapter, two: Adapter) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def same(one: ClientUpdate, two: ClientUpdate) -> bool:
    return equal(one.adapter, two.adapter) and (one.loss, one.score) == (two.loss, two.score)


def test_update_says_who_when_and_how_much(task, slm):
    update = client(task, slm, "b", COLOURS).train(TrainRequest(4, read_adapter(slm)))
    assert (update.client, update.round_index, update.examples) == ("b", 4, 5)
    assert 0.0 < update.loss < 5.0
    assert update.seconds.keys() == {"clients", "evaluation"}
    assert all(seconds >= 0 for seconds in update.seconds.values())


def test_training_changes_every_tensor_of_the_adapter(task, slm):
    before = read_adapter(slm)
    update = client(task, slm).train(TrainRequest(1, before))
    assert [name for name in before if torch.equal(before[name], update.adapter[name])] == []


def test_proximal_term_keeps_the_update_near_the_broadcast_adapter(task, slm):
    start = read_adapter(slm)

    def moved(proximal: float) -> float:
        update = client(task, slm, epochs=5, proximal=proximal).train(TrainRequest(1, start))
        return sum(float((update.adapter[name] - start[name]).square().sum()) for name in start)

    assert client(task, slm).settings.proximal == 0
    assert 0 < moved(10.0) < 0.5 * moved(0.0)


def test_shorter_gradients_move_the_update_less(task, slm):
    start = read_adapter(slm)

    def moved(longest: float | None) -> float:
        update = client(task, slm, max_grad_norm=longest).train(TrainRequest(1, start))
        return sum(float((update.adapter[name] - start[name]).square().sum()) for name in start)

    assert client(task, slm).settings.max_grad_norm is None
    assert 0 < moved(1e-9) < 0.5 * moved(None)  # AdamW minds the scale near its ε only


def test_client_trains_on_what_its_screen_leaves_and_tells_nobody_how_much_that_is(task, slm):
    class Half:
        def screened(self, modality, model, examples, where):
            seen.append((read_adapter(model), where))
            return examples[:2]

    seen, start = [], read_adapter(slm)
    screened = dataclasses.replace(client(task, slm, examples=COLOURS), screen=Half()).train(TrainRequest(1, start))
    assert equal(seen[0][0], start)  # the judge is the adapter that was sent
    assert seen[0][1] == "client a, round 1"
    whole = client(task, slm, examples=COLOURS[:2]).train(TrainRequest(1, start))
    assert equal(screened.adapter, whole.adapter)
    assert (screened.examples, whole.examples) == (5, 2)


def test_request_is_not_changed(task, slm):
    before = read_adapter(slm)
    kept = copy.deepcopy(before)
    client(task, slm).train(TrainRequest(1, before))
    assert equal(before, kept)


def test_later_training_does_not_change_an_update(task, slm):
    start = read_adapter(slm)
    update = client(task, slm).train(TrainRequest(1, start))
    kept = copy.deepcopy(update.adapter)
    client(task, slm, "b", COLOURS).train(TrainRequest(1, start))
    assert equal(update.adapter, kept)


def test_update_does_not_depend_on_what_was_trained_before(task, slm):
    request = TrainRequest(2, read_adapter(slm))
    one, other = client(task, slm), client(task, slm, "b", COLOURS)
    first = one.train(request)
    other.train(request)
    one.train(TrainRequest(3, first.adapter))
    torch.manual_seed(123)
    assert same(one.train(request), first)


def test_augmentation_is_a_function_of_client_round_and_example(task, slm):
    start, words = read_adapter(slm), "the good bad dog is a :"
    examples = [dataclasses.replace(one, prompt=f"{words} {one.prompt}") for one in ANIMALS]
    section = AugmentationConfig(kinds={"word_dropout": 1}, strength=3)

    def updates(rounds: list[int], **more) -> list[ClientUpdate]:
        one = client(task, slm, examples=examples, epochs=2, **more)
        return [one.train(TrainRequest(index, start)) for index in rounds]

    before = len(task.encoder._known)
    (first,) = updates([1], augmentation=section)
    again = updates([2, 1], augmentation=section)  # as after a restart, whatever was trained before
    assert same(again[1], first)
    assert not same(again[0], first)
    assert not same(updates([1])[0], first)
    assert len(task.encoder._known) - before <= 2 * len(ANIMALS + COLOURS) + len(examples)  # no changed prompts


def test_update_starts_from_the_request_and_not_from_the_model(task, slm):
    start = read_adapter(slm)
    shifted = {name: tensor + 0.1 for name, tensor in start.items()}
    one = client(task, slm, learning_rate=1e-12)
    update = one.train(TrainRequest(1, shifted))
    assert all(torch.allclose(update.adapter[name], shifted[name], atol=1e-6) for name in shifted)


@pytest.mark.parametrize("change", ["client", "round", "seed"])
def test_randomness_comes_from_client_round_and_seed(task, slm, change):
    start = read_adapter(slm)
    first = client(task, slm, "a", seed=0).train(TrainRequest(1, start))
    name, index, seed = (
        ("b" if change == "client" else "a"),
        (2 if change == "round" else 1),
        (1 if change == "seed" else 0),
    )
    other = client(task, slm, name, seed=seed).train(TrainRequest(index, start))
    assert not equal(first.adapter, other.adapter)


def test_client_scores_its_tuned_model_only_if_asked(task, slm):
    start = read_adapter(slm)
    update = client(task, slm).train(TrainRequest(1, start, evaluate=True))
    assert (update.score.count, update.score.outcomes) == (8, {})
    assert client(task, slm).train(TrainRequest(1, start, evaluate=False)).score is None


def test_client_sends_its_score_on_what_it_holds_out_in_every_round(task, slm):
    request = TrainRequest(1, read_adapter(slm), evaluate=False)
    one = dataclasses.replace(client(task, slm), held_out=COLOURS)
    update = one.train(request)
    assert (update.examples, update.score.count, list(update.score.sums)) == (3, 5, ["held_out"])
    update = one.train(dataclasses.replace(request, evaluate=True))
    assert list(update.score.sums) == ["acc", "acc_norm", "held_out"]
    assert update.score.counts == {"held_out": 5}


def test_client_learns_its_own_data(task, llama):
    slm = add_adapter(llama, rank=4, seed=1)
    animals = client(task, slm, epochs=15, learning_rate=2e-2).train(TrainRequest(1, read_adapter(slm)))
    assert animals.score.sums["acc"] == 3.0  # of eight test examples, its three animals
    assert animals.loss < 1.0


# --- a failure is an answer ---


def broken(*args, **settings):
    raise KeyError("the patient John Smith has E11.9")


FAILURES = {
    "loss": (lambda theta: {name: torch.full_like(tensor, 1e38) for name, tensor in theta.items()}, {}, {}),
    "exception": (dict, {"fit": broken}, {}),
    "out of memory": (dict, {"fit": lambda *args: torch.empty(2**60)}, {}),
    "change of a value": (dict, {}, {"value_range": 1e-6}),
    "change in all": (dict, {}, {"update_norm": 1e-6}),
    "loss before training": (dict, {}, {"start_loss": 1e-6}),
    "loss after training": (dict, {"fit": lambda *args: 1e7}, {}),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_training_that_fails_is_answered_as_any_other_with_a_change_of_zero(task, slm, kind, monkeypatch):
    theta, patches, limits = FAILURES[kind]
    request, told = TrainRequest(7, theta(read_adapter(slm))), []
    one = client(task, slm, limits=Limits(**limits))
    object.__setattr__(one, "operator", Operator(journal=told.append))
    honest = client(task, slm).train(TrainRequest(7, read_adapter(slm)))
    for name, stand_in in patches.items():
        monkeypatch.setattr(f"fedcollm.federation.client.{name}", stand_in)
    update = one.train(request)
    assert equal(update.adapter, request.adapter)
    assert (update.client, update.round_index, update.examples, update.loss) == ("a", 7, 3, 0.0)
    assert update.score.sums.keys() == honest.score.sums.keys()
    assert update.score.count == honest.score.count == 8
    assert len(encode(update)) == len(encode(honest))
    assert one.operator.failure is not None
    assert len(told) >= 1
    assert told[0].startswith("client a, round 7: failed, and the answer does not show it: ")
    assert "John" not in str(encode(update))


def test_client_works_again_after_a_training_that_failed(task, slm, monkeypatch):
    one, request = client(task, slm), TrainRequest(1, read_adapter(slm))
    expected = one.train(request)
    with monkeypatch.context() as patched:
        patched.setattr("fedcollm.federation.client.fit", broken)
        one.train(request)
    assert same(one.train(request), expected)
    assert one.operator.failure is None


def test_client_whose_training_failed_half_way_scores_the_adapter_that_it_was_sent(task, slm, monkeypatch):
    request = TrainRequest(1, read_adapter(slm))
    patch = "fedcollm.federation.client.fit"
    monkeypatch.setattr(patch, lambda *args: 0.5)
    expected = client(task, slm).train(request)

    def half_way(task, model, *args):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 1.0
        raise KeyError("the patient John Smith has E11.9")

    monkeypatch.setattr(patch, half_way)
    assert client(task, slm).train(request).score == expected.score
    assert equal(read_adapter(slm), request.adapter)


@pytest.mark.parametrize("value", [math.nan, math.inf, 9.0])
def test_score_that_is_no_score_is_answered_as_one_of_zero(task, slm, monkeypatch, value):
    score = TextTask.score

    def odd(self, model, examples):
        good = score(self, model, examples)
        return Score(dict.fromkeys(good.sums, value), good.count) if len(examples) > 1 else good

    monkeypatch.setattr(TextTask, "score", odd)
    one = client(task, slm)
    update = one.train(TrainRequest(1, read_adapter(slm)))
    assert (update.score.count, set(update.score.sums.values())) == (8, {0.0})
    assert update.loss > 0
    assert one.operator.failure is not None


def test_score_that_cannot_be_computed_at_all_is_a_score_too(task, slm, monkeypatch):
    monkeypatch.setattr(TextTask, "score", broken)
    update = client(task, slm).train(TrainRequest(1, read_adapter(slm)))
    assert (update.score.sums, update.score.count) == ({"accuracy": 0.0}, 8)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"adapter_value": 0.09}, "max_adapter_value 0.09"), ({"adapter_norm": 0.2}, "max_adapter_norm 0.2")],
)
def test_adapter_that_is_larger_than_agreed_is_refused_untrained(task, slm, limits, reason, monkeypatch):
    monkeypatch.setattr("fedcollm.federation.client.fit", lambda *a: pytest.fail("trained"))
    large = {name: torch.full_like(tensor, 0.1) for name, tensor in read_adapter(slm).items()}
    with pytest.raises(RefusalError, match=reason):
        client(task, slm, limits=Limits(**limits)).train(TrainRequest(1, large))


# --- rounds ---


@pytest.mark.parametrize("index", [0, 3, -1, 10**400])
def test_round_that_the_run_does_not_have_is_refused(task, slm, index):
    with pytest.raises(RefusalError, match="this run has the rounds from 1 to 2"):
        client(task, slm, rounds=2).answer(TrainRequest(index, read_adapter(slm)))


def test_round_is_answered_once(task, slm):
    one, theta = client(task, slm, rounds=3), read_adapter(slm)
    first = one.answer(TrainRequest(2, theta))
    again = dataclasses.replace(client(task, slm, rounds=3), spent=dict(one.spent))  # its process is a new one
    for request in (TrainRequest(2, theta), TrainRequest(2, theta, evaluate=False), TrainRequest(2, first.adapter)):
        with pytest.raises(RefusalError, match="round 2 was answered before, and only the same request"):
            again.answer(request)
    with pytest.raises(RefusalError, match="round 1 was asked for after round 2"):
        again.answer(TrainRequest(1, theta))
    assert again.answer(TrainRequest(3, theta)).round_index == 3


def test_round_that_was_not_answered_may_come_with_another_adapter(task, slm, monkeypatch):
    one, theta = client(task, slm, rounds=3), read_adapter(slm)
    monkeypatch.setattr("fedcollm.federation.client.fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.answer(TrainRequest(2, theta))
    monkeypatch.undo()
    assert one.answer(TrainRequest(2, {name: t + 0.01 for name, t in theta.items()})).round_index == 2


def interrupted(*args):
    raise KeyboardInterrupt


def changed(adapter: Adapter, name: str, tensor: torch.Tensor) -> Adapter:
    return {**adapter, name: tensor}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a, n: changed(a, n, torch.full_like(a[n], float("nan"))), "is not finite"),
        (lambda a, n: changed(a, n, torch.full_like(a[n], float("inf"))), "is not finite"),
        (lambda a, n: changed(a, n, a[n][:1]), "not "),
        (lambda a, n: changed(a, n, a[n].double()), "torch.float64"),
        (lambda a, n: {k: v for k, v in a.items() if k != n}, "is missing"),
        (lambda a, n: changed(a, "lm_head.weight", torch.zeros(2, 2)), "tensor lm_head.weight is unknown"),
    ],
)
def test_adapter_that_does_not_fit_is_refused_and_the_model_stays(task, slm, change, reason):
    before = read_adapter(slm)
    with pytest.raises(RefusalError, match=f"client a: the adapter does not fit the model: .*{reason}"):
        client(task, slm).train(TrainRequest(1, change(before, next(iter(before)))))
    assert equal(read_adapter(slm), before)


def test_request_of_another_run_is_refused(task, slm):
    with pytest.raises(RefusalError, match="a request of run 'theirs', and this client is part of 'ours'"):
        client(task, slm, run="ours").train(TrainRequest(1, read_adapter(slm), run="theirs"))


def test_data_never_show_in_the_representation(task, slm):
    text = repr(client(task, slm))
    assert "cat" not in text
    assert "id='a'" in text


# --- ranks ---


def test_client_of_a_lower_rank_trains_and_sends_its_first_components(task, llama):
    slm = add_adapter(llama, rank=4, seed=1)
    start = {name: tensor + 0.01 for name, tensor in read_adapter(slm).items()}
    update = client(task, slm, upload=UploadFormat(rank=1), epochs=3).train(TrainRequest(1, start))
    trained = read_adapter(slm)
    assert trained.keys() == update.adapter.keys()
    for name, tensor in trained.items():
        axis = component_axis(name)
        assert tensor.narrow(axis, 1, 3).count_nonzero() == 0  # not one step moved what the client does not have
        assert torch.equal(update.adapter[name], tensor.narrow(axis, 0, 1))
        assert not torch.equal(update.adapter[name], first(start, 1)[name])


def test_client_of_a_lower_rank_trains_as_one_whose_module_has_that_rank(task):
    small = add_adapter(tiny_llama(), rank=1, alpha=4, seed=1)  # scale 4 / 1
    large = add_adapter(tiny_llama(), rank=4, alpha=16, seed=2)  # scale 16 / 4
    start = {name: torch.randn_like(tensor) / 10 for name, tensor in read_adapter(large).items()}
    expected = client(task, small).train(TrainRequest(1, first(start, 1)))
    update = client(task, large, upload=UploadFormat(rank=1)).train(TrainRequest(1, start))
    assert update.loss == pytest.approx(expected.loss, rel=1e-5)
    assert all(torch.allclose(update.adapter[n], t, atol=1e-4) for n, t in expected.adapter.items())


def test_adapter_that_does_not_fit_is_refused_by_a_client_of_a_lower_rank_too(task, slm):
    with pytest.raises(RefusalError, match="client a: the adapter does not fit the model"):
        client(task, slm, upload=UploadFormat(rank=1)).train(TrainRequest(1, {"q.lora_A.weight": torch.tensor(1.0)}))


# --- its own adapter ---


def keeping(task, slm, **options) -> tuple[Client, list[Adapter]]:
    """A client, and where its own adapter ends up."""
    kept: list[Adapter] = []
    return client(task, slm, store=kept.append, **options), kept


def test_client_keeps_what_it_would_have_sent_and_sends_none_of_it(task, slm):
    start = read_adapter(slm)
    expected = client(task, slm).train(TrainRequest(3, start))
    one, kept = keeping(task, slm)
    assert one.answer(TrainRequest(3, start, keep=True)) == ClientUpdate("a", 3, {})
    assert equal(kept[0], expected.adapter)
    assert one.operator.kept == expected.score


@pytest.mark.parametrize("failing", ["fit", "score_quietly", "read_adapter"])
def test_client_says_the_same_whatever_comes_of_its_own_adapter(task, slm, monkeypatch, failing):
    one, kept = keeping(task, slm)
    theta = read_adapter(slm)
    real = getattr(client_module, failing)
    calls = iter([real] if failing == "read_adapter" else [])  # the first one only reads θ
    monkeypatch.setattr(client_module, failing, lambda *args: next(calls, broken)(*args))
    assert one.answer(TrainRequest(3, theta, keep=True)) == ClientUpdate("a", 3, {})
    assert one.operator.failure is not None
    assert len(kept) == (failing == "score_quietly")


def test_client_keeps_one_adapter_in_a_run_and_only_after_the_last_round(task, slm):
    one, kept = keeping(task, slm, rounds=2)
    start = read_adapter(slm)
    for index in (1, 2, 4):
        with pytest.raises(RefusalError, match="kept after round 2, the last one"):
            one.answer(TrainRequest(index, start, keep=True))
    other = {name: tensor + 0.1 for name, tensor in start.items()}
    for adapter in (start, start, other):
        assert one.answer(TrainRequest(3, adapter, keep=True)) == ClientUpdate("a", 3, {})
    assert len(kept) == 1


def test_client_of_a_lower_rank_keeps_an_adapter_that_fits_its_model(task, slm):
    one, kept = keeping(task, slm, upload=UploadFormat(torch.float16, rank=1))
    one.answer(TrainRequest(3, read_adapter(slm), keep=True))
    assert {(t.dtype, t.shape) for t in kept[0].values()} == {(t.dtype, t.shape) for t in read_adapter(slm).values()}
    assert all(kept[0][name].narrow(component_axis(name), 1, 1).count_nonzero() == 0 for name in kept[0])


@pytest.mark.parametrize("privacy", [ClientPrivacy(1.0, 1.0, 1e-4), ExamplePrivacy(1.0, 50.0, 1e-4, 0.5, 2)])
def test_under_privacy_the_own_adapter_has_no_noise_and_costs_none_and_no_number_leaves(task, slm, privacy):
    start = read_adapter(slm)
    expected = client(task, slm).train(TrainRequest(3, start))
    one, kept = keeping(task, slm, privacy=privacy, rounds=2)
    assert one.answer(TrainRequest(3, start, keep=True)) == ClientUpdate("a", 3, {})
    assert equal(kept[0], expected.adapter)
    assert one.spent == {"kept/": 3}


def test_client_that_was_not_asked_to_by_its_operator_keeps_nothing(task, slm):
    with pytest.raises(RefusalError, match=r"client a keeps no adapter of its own.*client\.personal"):
        client(task, slm).answer(TrainRequest(3, read_adapter(slm), keep=True))


def test_request_to_keep_of_another_run_is_refused(task, slm):
    one, kept = keeping(task, slm, run="ours")
    with pytest.raises(RefusalError, match="a request of run 'theirs'"):
        one.answer(TrainRequest(3, read_adapter(slm), run="theirs", keep=True))
    assert kept == []
