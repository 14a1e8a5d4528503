"""Rounds of Algorithm 1 on tiny models in one process."""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import peft
import pytest
import torch
from tests import parties
from tests.parties import add_adapter, agreeing, change, mean_of

from fedcollm.config import DistillationConfig
from fedcollm.errors import NonFiniteError, RoundFailedError
from fedcollm.federation.aggregation.checked import CheckedAggregator
from fedcollm.federation.cohort import of_round, sample
from fedcollm.federation.fresh_slm import distil_fresh
from fedcollm.federation.operator import Operator
from fedcollm.federation.server import Server
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import Adapter, Answer, Request, adapter_bytes
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.pretrained import load_causal_lm
from fedcollm.models.pruning import prune_layers
from fedcollm.seeding import RunIdentity, derive_seed
from fedcollm.transports.local import LocalTransport


def example(noun: str, answer: int) -> TextExample:
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), answer, ("animal", "colour"))


ANIMALS = [example(noun, 0) for noun in ("cat", "dog", "bird")]
COLOURS = [example(noun, 1) for noun in ("red", "green", "blue")]
PUBLIC = [example("good", 0), example("bad", 1), example("colour", 1), example("animal", 0).without_label()]


def test_a_round_uses_the_next_unlabelled_examples_and_every_labelled_one():
    unlabelled = [example(str(i), 0).without_label() for i in range(5)]
    public, identity = [*ANIMALS, *unlabelled], RunIdentity("run", 7)
    parts = [of_round(public, 2, identity, index) for index in (1, 2, 3, 4, 5)]
    assert all(part[:3] == ANIMALS for part in parts)
    drawn = [[int(e.id) for e in part[3:]] for part in parts]
    order = drawn[0] + drawn[1] + drawn[2][:1]
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert drawn == [order[:2], order[2:4], [order[4], order[0]], order[1:3], order[3:]]
    assert of_round(public, 2, RunIdentity("run", 7), 2) == parts[1]


def test_a_round_can_do_without_unlabelled_examples():
    assert of_round(PUBLIC, 0, RunIdentity("run", 7), 1) == PUBLIC[:3]


@pytest.mark.parametrize("size", [None, 1, 2])
def test_a_round_uses_all_unlabelled_examples_if_there_are_no_more(size):
    assert of_round(PUBLIC, size, RunIdentity("run", 7), 3) == PUBLIC


class Spy(LocalTransport):
    """A local transport that notes what passes."""

    def __init__(self, clients):
        super().__init__(clients)
        self.requests: list[Any] = []
        self.asked: list[list[str]] = []
        self.updates: list[Any] = []

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        self.requests += [next(iter(requests.values()))]
        self.asked.append(list(requests))
        for answer in super().ask(requests):
            self.updates.append(answer)
            yield answer


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


@pytest.fixture
def models(model_directories) -> tuple[peft.PeftModel, peft.PeftModel]:
    """A tiny SLM and a tiny LLM with adapters."""
    slm, llm = (load_causal_lm(model_directories[role], torch.float32) for role in ("slm", "llm"))
    return add_adapter(slm, rank=8, seed=1), add_adapter(llm, rank=2, seed=2)


PRIVATE = {"a": ANIMALS, "b": COLOURS[:2], "c": ANIMALS[:1] + COLOURS[2:]}


@pytest.fixture
def server(task, models) -> Server:
    """Three clients with 3, 2 and 2 examples."""
    slm, llm = models
    clients = {
        name: parties.client(name, task, slm, part, COLOURS, batch_size=1, learning_rate=1e-2)
        for name, part in PRIVATE.items()
    }
    return parties.server(task, slm, llm, Spy(clients), PUBLIC, ANIMALS + COLOURS, batch_size=2, learning_rate=1e-2)


def equal(one: Adapter, two: Adapter) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def changed(before: Adapter, after: Adapter) -> bool:
    """Whether every tensor is another one now."""
    return before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in before)


def test_mean_that_is_rejected_changes_nothing_and_is_noted(server):
    change(server, epochs=0)
    before, scores = server.adapter, iter([0.5, 0.25])
    server.aggregator = CheckedAggregator(server.aggregator, lambda adapter: next(scores), 0.1)
    record = server.run_round(1)
    assert record.participants == ()
    assert "the clients' mean is rejected" in record.notes[0]
    assert all(torch.allclose(server.adapter[name], tensor, atol=1e-9) for name, tensor in before.items())


def test_last_round_leaves_a_fresh_slm_that_depends_on_the_llm_alone(server):
    """Whatever the mean was, the final SLM is the same one as long as the LLM is; the LLM is trained as without it."""
    start, finals, notes = server.adapters(), [], []
    for rounds, epochs in ((2, 0), (2, 1), (1, 1)):
        server.restore(start)
        change(server, fresh_slm_epochs=epochs, rounds=rounds)
        notes.append(server.run_round(1).notes)
        finals.append(server.adapters())
    usual, not_last, fresh = finals
    assert notes == [(), (), ("the SLM was distilled anew from the LLM, on 4 public examples",)]
    assert equal(usual["slm"], not_last["slm"])  # only after the last round
    assert equal(usual["llm"], fresh["llm"])
    assert changed(usual["slm"], fresh["slm"])
    assert all(p.requires_grad for name, p in server.pair.llm.named_parameters() if "lora" in name)

    seed = server.identity.derive("fresh SLM", 1)
    server.restore(fresh | {"slm": {name: tensor + 1 for name, tensor in usual["slm"].items()}})  # something planted
    distil_fresh(server.pair, server.public, start["slm"], server.settings, seed)
    assert equal(read_adapter(server.pair.slm), fresh["slm"])


# --- the circle of data ---


def test_round_changes_every_tensor_at_every_client_and_both_roles_of_the_server(server):
    before = server.adapters()
    server.run_round(1)
    assert [update.client for update in server.transport.updates] == ["a", "b", "c"]
    assert all(changed(before["slm"], update.adapter) for update in server.transport.updates)
    after = server.adapters()
    assert changed(before["slm"], after["slm"])
    assert changed(before["llm"], after["llm"])


def test_clients_of_one_round_tune_apart(server):
    server.run_round(1)
    one, two, three = (update.adapter for update in server.transport.updates)
    assert changed(one, two)
    assert changed(two, three)
    assert changed(one, three)


def test_first_request_holds_the_initial_adapter(server):
    initial = read_adapter(server.pair.slm)
    server.run_round(1)
    (request,) = server.transport.requests
    assert request.round_index == 1
    assert equal(request.adapter, initial)


def test_distilled_adapter_is_what_the_next_clients_receive(server):
    server.run_round(1)
    distilled = read_adapter(server.pair.slm)
    averaged = mean_of(server.transport.updates).adapter
    server.run_round(2)
    second = server.transport.requests[1]
    assert second.round_index == 2
    assert equal(second.adapter, distilled)
    assert not any(torch.equal(second.adapter[name], averaged[name]) for name in averaged)


def test_without_an_llm_a_round_is_federated_averaging(server):
    change(server, llm=None)
    record = server.run_round(1)
    assert equal(server.adapter, mean_of(server.transport.updates).adapter)
    assert record.losses.keys() == {"client"}
    assert record.scores.keys() == {"slm", "clients"}


def test_uniform_weights_reach_the_aggregate(server):
    change(server, llm=None, aggregation="uniform")
    server.run_round(1)
    assert equal(server.adapter, mean_of(server.transport.updates, weighted=False).adapter)
    assert not equal(server.adapter, mean_of(server.transport.updates).adapter)


def test_no_epochs_of_distillation_leave_the_average(server):
    change(server, epochs=0)
    server.run_round(1)
    assert equal(server.adapter, mean_of(server.transport.updates).adapter)


def test_sequence_of_arrival_changes_nothing(server):
    start = server.adapters()
    server.run_round(1)
    expected = server.adapters()

    class Backwards(LocalTransport):
        def ask(self, requests):
            yield from super().ask(dict(reversed(requests.items())))

    server.restore(start)
    server.transport = Backwards(server.transport._clients)
    assert server.run_round(1).participants == ("a", "b", "c")
    assert equal(server.adapters()["slm"], expected["slm"])
    assert equal(server.adapters()["llm"], expected["llm"])


# --- a round is a function of adapters, data and seed ---


@pytest.mark.parametrize("kind", ["average", "fedavgm", "fedadam"])
def test_round_restored_and_run_again_is_the_same_bit_for_bit(server, kind):
    change(server, server_optimizer={"kind": kind, "learning_rate": 0.1})
    server.run_round(1)
    after_one = server.adapters()
    record = server.run_round(2)
    after_two = server.adapters()
    torch.manual_seed(77)
    server.restore(after_one)
    assert equal(server.adapter, after_one["slm"])
    again = server.run_round(2)
    assert equal(server.adapters()["slm"], after_two["slm"])
    assert equal(server.adapters()["llm"], after_two["llm"])
    assert (again.scores, again.losses) == (record.scores, record.losses)


@pytest.mark.parametrize("varied", ["round", "seed"])
def test_distillation_depends_on_round_and_seed(server, varied):
    server.transport = LocalTransport({})
    start = server.adapters()
    server.run_round(1)
    first = server.adapter
    server.restore(start)
    change(server, seed=1 if varied == "seed" else 0)
    server.run_round(2 if varied == "round" else 1)
    assert not equal(server.adapter, first)


def test_options_of_distillation_reach_it(server, monkeypatch):
    seen = []
    monkeypatch.setattr("fedcollm.federation.server.distil", lambda *given: seen.append(given) or {})
    options = {"weight": 0.5, "llm_weight": 0.25, "temperature": 2.0, "divergence": "reverse_kl"}
    change(server, epochs=2, batch_size=3, teach_where_better=True, max_grad_norm=0.5, **options)
    server.run_round(4, score=False)
    ((pair, public, settings, seed, round_index, trust),) = seen
    assert trust is None
    assert (pair, public, seed, round_index) == (server.pair, PUBLIC, derive_seed(0, "server", 4), 4)
    assert settings.distillation == DistillationConfig(**options, teach_where_better=True)
    assert (settings.epochs, settings.batch_size, settings.max_grad_norm) == (2, 3, 0.5)


def test_restore_refuses_adapters_that_do_not_fit(server):
    with pytest.raises(ValueError, match="adapter does not fit the model"):
        server.restore({"slm": {}, "llm": {}})


def test_scores_do_not_change_the_next_round(server):
    start = server.adapters()
    server.run_round(1, score=True)
    scored = server.adapters()
    server.restore(start)
    server.run_round(1, score=False)
    assert equal(server.adapters()["slm"], scored["slm"])
    assert equal(server.adapters()["llm"], scored["llm"])


# --- the server's step ---


def test_step_starts_from_what_was_broadcast_and_ends_at_what_is_broadcast_next(server):
    change(server, llm=None, server_optimizer={"kind": "fedavgm", "learning_rate": 0.5, "momentum": 0.9})
    start = server.adapter
    server.run_round(1)
    mean = mean_of(server.transport.updates).adapter
    # the first momentum is Δ itself: half way from θ to the mean
    for name, tensor in server.adapter.items():
        torch.testing.assert_close(tensor, (start[name] + mean[name]) / 2)
        torch.testing.assert_close(server.state["momentum"][name], mean[name] - start[name])
    assert equal(server.adapters()["momentum"], server.state["momentum"])
    stepped = server.adapter
    server.run_round(2)
    assert equal(server.transport.requests[1].adapter, stepped)


@pytest.mark.parametrize(
    ("kind", "roles"), [("average", []), ("fedavgm", ["momentum"]), ("fedadam", ["momentum", "second_moment"])]
)
def test_memory_of_the_step_is_part_of_what_the_next_round_depends_on(server, kind, roles):
    change(server, server_optimizer={"kind": kind, "learning_rate": 0.1})
    server.run_round(1, score=False)
    after_one = server.adapters()
    assert list(after_one) == ["slm", "llm", *roles]
    server.run_round(2, score=False)
    expected = server.adapter
    server.restore({role: after_one[role] for role in ("slm", "llm")})
    assert server.state == {}
    server.run_round(2, score=False)
    assert equal(server.adapter, expected) == (kind == "average")


def test_round_without_clients_keeps_the_memory(server):
    change(server, server_optimizer={"kind": "fedavgm"})
    server.run_round(1, score=False)
    memory = server.state
    server.transport = Spy({})
    server.run_round(2, score=False)
    assert memory.keys() == {"momentum"}
    assert server.state is memory


def test_round_that_fails_keeps_the_memory_of_the_last_good_one(server):
    change(server, server_optimizer={"kind": "fedadam", "learning_rate": 0.01})
    server.run_round(1, score=False)
    memory, adapter = server.state, server.adapter
    with torch.no_grad():
        next(p for p in server.pair.llm.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="distillation"):
        server.run_round(2)
    assert server.state is memory
    assert server.adapter is adapter


# --- layer_transfer ---

KEPT = (0, 3)


@pytest.fixture
def cut(task, model_directories):
    """A server whose SLM is layers 0 and 3 of the LLM's four, before any distillation; options are the server's."""
    base = load_causal_lm(model_directories["llm"], torch.float32)

    def make(kept=KEPT, **options) -> Server:
        small = prune_layers(copy.deepcopy(base), len(kept))
        slm, llm = add_adapter(small, rank=4, seed=1), add_adapter(copy.deepcopy(base), rank=4, seed=2)
        clients = {
            name: parties.client(name, task, slm, part, COLOURS, batch_size=1, learning_rate=1e-2)
            for name, part in PRIVATE.items()
        }
        options = {"epochs": 0, "layer_transfer": 1.0, "slm_layers": kept} | options
        return parties.server(task, slm, llm, Spy(clients), PUBLIC, ANIMALS + COLOURS, **options)

    return make


def layer_of(adapter: Adapter, index: int) -> Adapter:
    """The tensors of one layer, without its number."""
    return {name.replace(f".{index}.", ".", 1): t for name, t in adapter.items() if f".layers.{index}." in name}


def test_roots_are_the_slms_in_the_kept_layers_and_the_llms_own_elsewhere(cut):
    own = cut(layer_transfer=0.0).adapters()["llm"]
    start = cut().adapters()
    assert len(layer_of(start["slm"], 1)) == 14
    for place, layer in enumerate(KEPT):
        assert equal(layer_of(start["llm"], layer), layer_of(start["slm"], place))
        assert not equal(layer_of(own, layer), layer_of(start["slm"], place))
    for layer in (1, 2):
        assert equal(layer_of(start["llm"], layer), layer_of(own, layer))


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_every_round_carries_its_share_of_the_clients_mean_change(cut, share):
    server = cut(layer_transfer=share)
    for index in (1, 2):
        before = server.adapters()
        server.run_round(index, score=False)
        after = server.adapters()
        mean = mean_of(server.transport.updates[-3:]).adapter
        for place, layer in enumerate(KEPT):
            was, now = layer_of(before["llm"], layer), layer_of(after["llm"], layer)
            theta, tuned = layer_of(before["slm"], place), layer_of(mean, place)
            assert changed(was, now)
            for name, tensor in now.items():
                torch.testing.assert_close(
                    tensor - was[name], share * (tuned[name] - theta[name]), atol=1e-6, rtol=1e-4
                )
        for layer in (1, 2):
            assert equal(layer_of(after["llm"], layer), layer_of(before["llm"], layer))


def test_llm_whose_every_layer_is_the_slms_answers_as_the_slm_does(cut):
    server = cut(kept=(0, 1, 2, 3))
    for index in (1, 2):
        server.run_round(index, score=False)
    batch = server.pair.modality.collate(ANIMALS + COLOURS)
    with torch.no_grad():
        slm, llm = (server.pair.modality.logits(model, batch) for model in (server.pair.slm, server.pair.llm))
        with server.pair.llm.disable_adapter():
            bare = server.pair.modality.logits(server.pair.llm, batch)
    torch.testing.assert_close(llm, slm, atol=1e-4, rtol=1e-4)
    assert (llm - bare).abs().max() > 0.1


def test_carried_change_is_that_of_the_servers_step(cut):
    server = cut(server_optimizer={"learning_rate": 0.5})
    before = server.adapters()["llm"]
    server.run_round(1, score=False)
    mean, after = mean_of(server.transport.updates).adapter, server.adapters()["llm"]
    start = server.transport.requests[0].adapter
    for name, tensor in layer_of(after, 3).items():
        half = (layer_of(mean, 1)[name] - layer_of(start, 1)[name]) / 2
        torch.testing.assert_close(tensor - layer_of(before, 3)[name], half, atol=1e-6, rtol=1e-4)


def test_without_layer_transfer_nothing_of_the_clients_reaches_the_llm_by_itself(cut):
    server = cut(layer_transfer=0.0)
    before = server.adapters()["llm"]
    server.run_round(1, score=False)
    assert equal(server.adapters()["llm"], before)


def test_layer_transfered_round_restored_and_run_again_is_the_same_bit_for_bit(cut):
    server = cut(epochs=1, batch_size=2, learning_rate=1e-2)
    server.run_round(1, score=False)
    after_one = server.adapters()
    server.run_round(2, score=False)
    expected, other = server.adapters(), cut(epochs=1, batch_size=2, learning_rate=1e-2)
    other.restore(after_one)
    other.run_round(2, score=False)
    assert equal(other.adapters()["slm"], expected["slm"])
    assert equal(other.adapters()["llm"], expected["llm"])


# --- the record ---


def test_record_by_hand(server):
    record = server.run_round(1)
    assert record.round == 1
    assert record.participants == ("a", "b", "c")
    # LoRA of rank 8 on the tiny SLM: 2176 values a layer (see test_models), 2 layers, 4 bytes each
    assert (record.bytes_up, record.bytes_down) == (17408, 17408)
    assert record.seconds.keys() == {"clients", "distillation", "evaluation"}
    assert record.scores.keys() == {"slm", "llm", "clients"}
    assert record.losses.keys() == {"client", "slm", "llm", "kl"}
    assert record.peak_memory_bytes > 50_000_000  # torch alone takes more


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uploads_in_sixteen_bits_are_half_as_long_and_only_rounded(server, dtype):
    change(server, llm=None)
    start = server.adapter
    server.run_round(1)
    exact, server.adapter = server.adapter, start
    whole = [update.adapter for update in server.transport.updates]
    upload, clients = UploadFormat(dtype), server.transport._clients
    server.transport = Spy({name: agreeing(client, upload=upload) for name, client in clients.items()})
    change(server, uploads=dict.fromkeys(clients, upload))
    record = server.run_round(1)
    assert (record.bytes_up, record.bytes_down) == (8704, 17408)
    assert sum(adapter_bytes(update.adapter) for update in server.transport.updates) == 3 * record.bytes_up
    for sent, before in zip(server.transport.updates, whole, strict=True):
        assert equal(sent.adapter, {name: tensor.to(dtype) for name, tensor in before.items()})
    assert all(tensor.dtype == torch.float32 for tensor in server.adapter.values())
    step = torch.finfo(dtype).eps
    assert all(torch.allclose(server.adapter[name], exact[name], rtol=0, atol=step) for name in exact)
    assert not equal(server.adapter, exact)


def test_clients_of_different_ranks_send_their_components_and_the_mean_is_over_those_that_have_them(server):
    change(server, llm=None)
    start, clients = server.adapter, server.transport._clients
    uploads = {"a": UploadFormat(rank=2), "b": UploadFormat(rank=4), "c": UploadFormat(rank=2)}
    change(server, uploads=uploads)
    server.transport = Spy({n: agreeing(client, upload=uploads[n]) for n, client in clients.items()})
    record = server.run_round(1)
    assert record.lost == {}
    # a rank-8 adapter has 17408 bytes: 2, 4 and 2 of 8 components
    assert record.bytes_up == (4352 + 8704 + 4352) // 3
    assert [adapter_bytes(update.adapter) for update in server.transport.updates] == [4352, 8704, 4352]
    a, b, c = (update.adapter for update in server.transport.updates)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    expected = (3 * a[name].double() + 2 * b[name][:2] + 2 * c[name]) / 7
    assert torch.allclose(server.adapter[name][:2], expected.float(), atol=1e-7)
    assert torch.equal(server.adapter[name][2:4], b[name][2:])
    assert torch.equal(server.adapter[name][4:], start[name][4:])


@pytest.mark.parametrize("ranks", [None, (8, 4, 2)], ids=["one rank", "ranks"])
def test_product_of_the_global_adapter_is_the_closest_to_the_mean_of_the_clients_products(server, ranks):
    change(server, llm=None, aggregation="product")
    clients = server.transport._clients
    if ranks:
        uploads = {name: UploadFormat(rank=rank) for name, rank in zip(clients, ranks, strict=True)}
        change(server, uploads=uploads)
        replaced = {n: agreeing(client, upload=uploads[n]) for n, client in clients.items()}
        server.transport = Spy(replaced)
    server.run_round(1)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    parts = [(w, u.adapter) for w, u in zip((3, 2, 2), server.transport.updates, strict=True)]
    dense = torch.zeros(16, 32, dtype=torch.float64)
    for component in range(8):
        terms = [(w, a[name.format("B")][:, [component]].double() @ a[name.format("A")][[component]].double())
                 for w, a in parts if component < len(a[name.format("A")])]  # fmt: skip
        dense += sum(w * term for w, term in terms) / sum(w for w, _ in terms)
    u, sigma, vt = torch.linalg.svd(dense)
    kept = server.adapter[name.format("B")].double() @ server.adapter[name.format("A")].double()
    assert torch.allclose(kept, u[:, :8] @ torch.diag(sigma[:8]) @ vt[:8], atol=1e-6)
    assert float(kept.norm()) > 1e-3
    server.run_round(2)


def test_clients_keep_what_they_tune_from_the_distilled_adapter(server):
    kept, clients = {}, server.transport._clients
    stores = {name: functools.partial(kept.__setitem__, name) for name in clients}
    server.transport = Spy(
        {n: dataclasses.replace(client, operator=Operator(stores[n])) for n, client in clients.items()}
    )
    record = server.run_round(1)
    distilled = server.adapters()
    final, scores = server.personalize(record)
    assert equal(server.transport.requests[-1].adapter, distilled["slm"])
    assert kept.keys() == scores.keys() == set(PRIVATE)
    assert final.scores == record.scores | {"personal": sum(scores.values()) / 3}
    assert (final.bytes_up, final.bytes_down, final.losses) == (record.bytes_up, record.bytes_down, record.losses)
    assert final.seconds == record.seconds
    assert equal(server.adapters()["slm"], distilled["slm"])
    assert equal(read_adapter(server.pair.slm), distilled["slm"])
    assert all(changed(distilled["slm"], adapter) for adapter in kept.values())


def test_client_part_of_the_record_is_the_mean_of_the_updates(server):
    record = server.run_round(1)
    losses = [update.loss for update in server.transport.updates]
    assert record.losses["client"] == pytest.approx((3 * losses[0] + 2 * losses[1] + 2 * losses[2]) / 7)
    scores = [update.score.value for update in server.transport.updates]
    assert record.scores["clients"] == pytest.approx(sum(scores) / 3)


def test_scores_are_means_over_the_test_examples_with_their_confusion(server):
    record = server.run_round(1)
    assert server.scored.keys() == {"slm", "llm"}
    for role, score in server.scored.items():
        assert score.count == 6
        right = sum(n for (true, predicted), n in score.confusion.items() if true == predicted)
        assert record.scores[role] == right / 6


def test_round_that_is_not_scored_asks_nobody_for_scores(server):
    record = server.run_round(1, score=False)
    assert record.scores == {}
    assert server.scored == {}
    assert [request.evaluate for request in server.transport.requests] == [False]
    assert all(update.score is None for update in server.transport.updates)


def test_scores_before_any_round(server):
    assert server.scores().keys() == {"slm", "llm"}
    assert server.transport.requests == []


# --- who takes part ---


def test_round_without_clients_distils_alone(server):
    before = server.adapters()
    server.transport = Spy({})
    record = server.run_round(1)
    assert (record.participants, record.bytes_up, record.bytes_down) == ((), 0, 0)
    assert record.losses.keys() == {"slm", "llm", "kl"}
    assert record.scores.keys() == {"slm", "llm"}
    assert server.transport.requests == []
    assert changed(before["slm"], server.adapter)


def test_fraction_draws_that_share_of_the_clients(server):
    change(server, fraction=0.67, llm=None)
    participants = {server.run_round(index, score=False).participants for index in range(1, 7)}
    assert all(len(ids) == 2 for ids in participants)
    assert len(participants) > 1
    assert server.transport.asked[0] == list(sample(["a", "b", "c"], 0.67, 0, 1))


IDS = [str(i) for i in range(10)]


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 10), (0.5, 5), (0.34, 3), (0.01, 1)])
def test_sample_counts_and_keeps_the_order(fraction, count):
    drawn = sample(IDS, fraction, 0, 1)
    assert len(drawn) == count
    assert drawn == sorted(drawn)
    assert set(drawn) <= set(IDS)


def test_sample_of_no_clients_is_empty():
    assert sample([], 0.5, 0, 1) == []


def test_sample_depends_on_seed_and_round_alone():
    first = sample(IDS, 0.5, 0, 1)
    torch.manual_seed(3)
    assert sample(IDS, 0.5, 0, 1) == first
    assert sample(IDS, 0.5, 0, 2) != first
    assert sample(IDS, 0.5, 1, 1) != first


def test_every_client_is_drawn_sooner_or_later():
    assert {client for index in range(40) for client in sample(IDS, 0.2, 0, index)} == set(IDS)


# --- failures ---


class Silent(LocalTransport):
    """Clients that never answer."""

    def ask(self, requests):
        return iter(())


def test_round_without_any_answer_is_refused_and_keeps_the_adapter(server):
    before = server.adapter
    server.transport = Silent(server.transport._clients)
    with pytest.raises(RoundFailedError, match="no client's update could be used"):
        server.run_round(1)
    assert server.adapter is before


def test_distillation_that_fails_keeps_the_last_good_adapter(server):
    before = server.adapter
    with torch.no_grad():
        next(p for p in server.pair.llm.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="distillation"):
        server.run_round(1)
    assert server.adapter is before


class Broken(LocalTransport):
    """The last client's adapter is no number."""

    def ask(self, requests):
        for update in super().ask(requests):
            factor = math.nan if update.client == list(requests)[-1] else 1.0
            adapter = {name: tensor * factor for name, tensor in update.adapter.items()}
            yield dataclasses.replace(update, adapter=adapter)


def test_update_that_is_not_finite_is_left_out_of_the_round(server):
    clients, start = server.transport._clients, server.adapter
    change(server, llm=None)
    server.transport = Broken(clients)
    record = server.run_round(1, score=False)
    assert record.participants == ("a", "b")
    assert list(record.lost) == ["c"]
    assert record.lost["c"].endswith("is not finite")
    without_c, server.adapter = server.adapter, start
    server.transport = LocalTransport({name: client for name, client in clients.items() if name != "c"})
    server.run_round(1, score=False)
    assert equal(server.adapter, without_c)
