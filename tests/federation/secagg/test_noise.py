"""Clipping, rounding and noise by hand; and rounds under privacy: nothing leaves a client but its noised change."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests import parties
from tests.parties import add_adapter

from fedcollm.errors import RefusalError, UserError
from fedcollm.federation.aggregation.validation import Expected, validate_updates
from fedcollm.federation.client import Client
from fedcollm.federation.secagg import client as secure_client
from fedcollm.federation.secagg.aggregator import SecureAggregator
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint, pack, statistics
from fedcollm.federation.secagg.noise import (
    check_grid,
    clipped,
    noised,
    private_fixed_point,
    round_within,
    sensitivity,
)
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.federation.server import Server
from fedcollm.messages import ClientUpdate, Score, TrainRequest
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.pretrained import load_causal_lm
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.privacy.keystream import SecureStream
from fedcollm.transports.local import LocalTransport

KEY = bytes(range(32))
CLIENT = ClientPrivacy(clip=0.05, noise_multiplier=0.1, delta=1e-5)
EXAMPLE = ExamplePrivacy(clip=1.0, noise_multiplier=1.0, delta=1e-5, sampling_rate=0.5, steps=2)
IDS = ("a", "b", "c", "d")


# --- clipping ---


def test_change_longer_than_the_clip_is_scaled_down_as_a_whole():
    delta = {"b": torch.tensor([[0.0, 4.0]]), "a": torch.tensor([3.0])}  # norm 5, over all tensors together
    assert clipped(delta, 1.0).tolist() == pytest.approx([0.6, 0.0, 0.8])  # in the order of the names


def test_change_within_the_clip_is_left_as_it_is():
    delta = {"a": torch.tensor([3.0, 4.0])}
    assert clipped(delta, 5.0).tolist() == [3.0, 4.0]
    assert clipped({"a": torch.zeros(2)}, 1.0).tolist() == [0.0, 0.0]


# --- rounding ---


def test_bound_by_hand():
    assert sensitivity(3.0, 4) == pytest.approx(math.sqrt(14))  # 5, or √(9 + 1 + 3 + 1)
    assert sensitivity(0.0, 4) == pytest.approx(math.sqrt(2))  # 2, or √(0 + 1 + 0 + 1)
    assert sensitivity(100.0, 1) == pytest.approx(math.sqrt(10100.75))  # 101, or √(10000 + 0.25 + 100 + 0.5)


@pytest.mark.parametrize("value", [0.5, 0.1, 1.7, 30.25])
def test_rounded_vectors_keep_the_bound(value):
    values = np.full(300, value) * np.where(np.arange(300) % 2, 1, -1)
    bound = sensitivity(float(np.linalg.norm(values)), 300)
    for _ in range(50):
        rounded = round_within(values, bound, SecureStream())
        assert int((rounded**2).sum()) <= bound**2
        assert (np.abs(rounded - values) < 1).all()


def test_rounding_is_tried_again_until_the_norm_is_within_the_bound():
    # (½, ½) becomes (0, 0), (0, 1), (1, 0) or (1, 1); a bound of 1 leaves the first three
    stream = SecureStream(KEY)
    seen = {tuple(round_within(np.array([0.5, 0.5]), 1.0, stream).tolist()) for _ in range(200)}
    assert seen == {(0, 0), (0, 1), (1, 0)}


def test_rounding_is_unbiased_and_leaves_whole_numbers_alone():
    rounded = round_within(np.full(100_000, -2.25), 1e9, SecureStream(KEY))
    assert rounded.mean() == pytest.approx(-2.25, abs=4 * math.sqrt(0.1875 / 100_000))
    assert round_within(np.array([-3.0, 0.0, 7.0]), 10.0, SecureStream(KEY)).tolist() == [-3, 0, 7]


# --- noise ---


@pytest.mark.parametrize("threshold", [3, 7])
def test_noise_of_the_threshold_of_clients_is_the_whole_noise(threshold):
    privacy, bits, size = ClientPrivacy(1.0, 2.0, 1e-5), 20, 50_000
    zero = {"a": torch.zeros(size)}
    total = sum(noised(zero, privacy, bits, threshold, SecureStream(bytes([i] * 32))) for i in range(threshold))
    wanted = 2.0 * sensitivity(2.0**20, size)
    assert wanted >= 2.0 * 2.0**20  # z times the clip, in steps of the grid
    assert np.std(total) == pytest.approx(wanted, rel=4 / math.sqrt(2 * size))
    assert abs(np.mean(total)) < 4 * wanted / math.sqrt(size)


def test_noise_is_added_to_the_clipped_change():
    privacy = ClientPrivacy(1.0, 1e-3, 1e-5)
    delta = {"a": torch.tensor([30.0, 0.0, -40.0])}
    vector = noised(delta, privacy, 20, 3, SecureStream(KEY)) / 2**20
    assert vector.tolist() == pytest.approx([0.6, 0.0, -0.8], abs=5e-3)


def test_noise_differs_each_time():
    delta = {"a": torch.zeros(1000)}
    one, other = (noised(delta, ClientPrivacy(1.0, 1.0, 1e-5), 20, 3) for _ in range(2))
    assert (one == other).mean() < 0.01


# --- the ring ---


@pytest.mark.parametrize("clients", [3, 4, 100, 1000])
@pytest.mark.parametrize(("clip", "noise"), [(1.0, 1.0), (1e-4, 0.1), (300.0, 20.0)])
def test_sums_with_twelve_deviations_of_the_noise_do_not_overflow(clients, clip, noise):
    privacy, dimension = ClientPrivacy(clip, noise, 1e-5), 10**6
    encoding = private_fixed_point(clients, privacy)
    threshold = 2 * clients // 3 + 1
    check_grid(encoding, privacy, clients, threshold, dimension)
    norm = sensitivity(clip * 2.0**encoding.fraction_bits, dimension)
    deviation = noise * norm * math.sqrt(clients / threshold)
    assert clients * norm + 12 * deviation < 2**31
    assert clients * encoding.value_range * 2.0**encoding.fraction_bits < 2**31


def test_extreme_changes_of_all_clients_come_through():
    privacy = ClientPrivacy(1.0, 0.5, 1e-5)
    encoding = private_fixed_point(4, privacy)
    total = np.zeros(1, np.uint32)
    for _ in range(4):
        total = total + pack(noised({"a": torch.tensor([-50.0])}, privacy, encoding.fraction_bits, 3), {})
    value = encoding.decode(total, {"a": (1,)}, [])[0]["a"].item()
    assert value == pytest.approx(-4.0, abs=6 * 0.5 * math.sqrt(4 / 3))


def test_grid_too_coarse_for_the_change_is_refused():
    with pytest.raises(UserError, match="leave 4 steps of the fixed-point grid to a change of 1, too few for 1000 par"):
        check_grid(FixedPoint(4, 1, 2.0**26), CLIENT_ONE, 4, 3, 1000)  # (2²⁹ − 1) / 2²⁶ is just below 8, so 2 bits


def test_noise_too_small_for_the_grid_is_refused():
    privacy = dataclasses.replace(CLIENT_ONE, noise_multiplier=1e-4)
    with pytest.raises(UserError, match=r"standard deviation of 0\.237 steps"):
        check_grid(FixedPoint(4, 1, 2.0**16), privacy, 4, 3, 4)  # 12 bits: 1e-4 · 4096.5 / √3


CLIENT_ONE = ClientPrivacy(1.0, 1.0, 1e-5)


# --- rounds ---


def example(noun: str) -> TextExample:
    answer = 0 if noun in ("cat", "dog", "bird") else 1
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), answer, ("animal", "colour"))


@pytest.fixture
def make(tokenizer, model_directories):
    """Four clients under some privacy, on one SLM."""
    task = TextTask("toy", tokenizer, 16, 32)
    slm = add_adapter(load_causal_lm(model_directories["slm"], torch.float32), rank=2, seed=1)
    parts = {"a": ("cat",), "b": ("dog", "bird"), "c": ("red", "green", "blue"), "d": ("good",)}

    def clients(privacy: Privacy | None, rounds: int | None = None) -> dict[str, Client]:
        test = [example(noun) for noun in ("cat", "red", "dog")]
        return {
            name: parties.client(
                name, task, slm, [example(n) for n in nouns], test, learning_rate=1e-2, privacy=privacy, rounds=rounds
            )
            for name, nouns in parts.items()
        }

    return clients


def secured(clients, privacy, **settings) -> tuple[dict[str, SecureClient], SecureSettings]:
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    roster = {name: key.public_key() for name, key in keys.items()}
    private = isinstance(privacy, ClientPrivacy)
    encoding = private_fixed_point(len(clients), privacy) if private else FixedPoint(len(clients), 1, 10.0)
    agreed = SecureSettings(encoding, roster, None, True, privacy)
    members = {n: SecureClient(c, agreed, len(clients), keys[n]) for n, c in clients.items()}
    return members, dataclasses.replace(agreed, privacy=settings.get("expected", privacy))


def server(clients, privacy, secure: bool, **settings) -> Server:
    one = clients["a"]
    made = parties.server(
        one.modality,
        one.slm,
        None,
        LocalTransport(clients),
        [],
        one.test,
        aggregation="uniform",
        privacy=privacy,
    )
    if secure:
        members, agreed = secured(clients, privacy, **settings)
        made.transport, made.aggregator = LocalTransport(members), SecureAggregator(agreed)
    return made


@pytest.mark.parametrize(
    ("privacy", "secure"), [(CLIENT, True), (EXAMPLE, True), (EXAMPLE, False)], ids=["client", "secure", "plain"]
)
def test_round_has_no_numbers_of_the_clients_but_who_took_part(make, privacy, secure):
    clients = make(privacy)
    one = server(clients, privacy, secure)
    before = one.adapter
    record = one.run_round(1)
    assert record.participants == IDS
    assert dict(record.lost) == {}
    assert record.losses == {}
    assert record.scores.keys() == {"slm"}
    assert record.seconds.keys() == {"distillation", "evaluation"}
    assert any(not torch.equal(before[name], one.adapter[name]) for name in before)


@pytest.mark.parametrize("privacy", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_client_gives_nothing_but_its_adapter(make, privacy, monkeypatch):
    monkeypatch.setattr("fedcollm.federation.scoring.evaluate", lambda *a: pytest.fail("scored"))
    client = make(privacy)["c"]
    update = client.train(TrainRequest(1, read_adapter(client.slm), evaluate=True))
    assert update == ClientUpdate("c", 1, update.adapter, None, None, None, {})
    assert statistics(update) == {"clients": 1.0}


def test_vector_of_two_clients_with_the_same_change_differs_in_noise_only(make, monkeypatch):
    # the vector that is masked: four limbs that say "one client", and the noised change; nothing of the examples
    privacy = dataclasses.replace(CLIENT, noise_multiplier=1e-5)
    members, settings = secured(make(privacy), privacy)
    theta = read_adapter(members["a"].client.slm)
    size = sum(tensor.numel() for tensor in theta.values())
    tuned = {name: tensor + 1.0 for name, tensor in theta.items()}
    for member in members.values():
        vector = member._vector(TrainRequest(1, theta), ClientUpdate(member.client.id, 1, tuned), 3)
        assert vector[:4].tolist() == [0, 16, 0, 0]
        assert len(vector) == 4 + size
        step = privacy.clip * 2.0**settings.encoding.fraction_bits / math.sqrt(size)
        assert vector[4:].astype(np.int64) == pytest.approx(step, rel=1e-2)  # clipped from 1 a parameter


def test_round_under_client_level_privacy_is_the_mean_of_clipped_changes_and_noise(make, monkeypatch):
    privacy = dataclasses.replace(CLIENT, noise_multiplier=1e-5)
    clients = make(privacy)
    one = server(clients, privacy, secure=True)
    theta = one.adapter
    one.run_round(1)
    expected = 0
    for client in clients.values():
        update = client.train(TrainRequest(1, theta))
        expected = expected + clipped({n: t - theta[n] for n, t in update.adapter.items()}, privacy.clip) / 4
    found = clipped({name: one.adapter[name] - theta[name] for name in theta}, 1e9)
    assert 0.01 < np.linalg.norm(expected) <= privacy.clip
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("privacy", "secure"), [(CLIENT, True), (EXAMPLE, True), (EXAMPLE, False)], ids=["client", "secure", "plain"]
)
def test_two_runs_with_one_seed_differ_in_noise(make, privacy, secure):
    start, ends = None, []
    for _ in range(2):
        one = server(make(privacy), privacy, secure)
        start = start or one.adapter
        one.adapter = start
        one.run_round(1)
        ends.append(one.adapter)
    assert not any(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_round_goes_on_without_a_lost_client_with_at_least_the_wanted_noise(make, monkeypatch):
    thresholds = []
    monkeypatch.setattr(secure_client, "noised", lambda *a: thresholds.append(a[3]) or noised(*a))
    one = server(make(CLIENT, rounds=0) | {k: v for k, v in make(CLIENT).items() if k != "b"}, CLIENT, secure=True)
    record = one.run_round(1)
    assert record.participants == ("a", "c", "d")
    assert thresholds == [3, 3, 3]  # each adds a third of the variance


# --- what a client refuses ---


@pytest.mark.parametrize("other", [None, dataclasses.replace(CLIENT, noise_multiplier=0.01), EXAMPLE])
def test_server_with_other_privacy_settings_finds_no_client(make, other):
    one = server(make(CLIENT), CLIENT, secure=True, expected=other)
    with pytest.raises(UserError, match="0 of 4 clients are left after phase advertise"):
        one.run_round(1)


def test_client_of_client_level_privacy_refuses_to_send_a_plain_update(make):
    client = make(CLIENT)["a"]
    with pytest.raises(RefusalError, match="adds a share of the noise only"):
        client.answer(TrainRequest(1, read_adapter(client.slm)))


@pytest.mark.parametrize("privacy", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_round_that_is_tried_again_counts_again_and_ends_when_all_is_spent(make, privacy):
    client = make(privacy, rounds=2)["b"]
    request = TrainRequest(1, read_adapter(client.slm))
    client.train(request)
    client.train(request)
    assert client.spent == {"rounds": 2}
    with pytest.raises(RefusalError, match="client b has spent its privacy in 2 rounds"):
        client.train(dataclasses.replace(request, round_index=2))


def test_without_privacy_nothing_is_counted(make):
    client = make(None, rounds=1)["b"]
    for _ in range(3):
        assert client.train(TrainRequest(1, read_adapter(client.slm))).examples == 2
    assert client.spent == {}


# --- what the server refuses ---


@pytest.mark.parametrize(
    "numbers", [{"examples": 3}, {"loss": 0.5}, {"score": Score({"acc": 1.0}, 2)}, {"seconds": {"clients": 1.0}}]
)
def test_update_that_tells_more_than_it_should_is_refused(numbers):
    request, lost = TrainRequest(1, {"w": torch.zeros(1)}), {}
    update = ClientUpdate("a", 1, request.adapter, **numbers)
    assert list(validate_updates([update], Expected(request, ["a"], 1.0, private=True), lost)) == []
    assert lost == {"a": "numbers of private data beside the adapter"}


def test_update_without_numbers_is_refused_where_they_are_needed():
    request, lost = TrainRequest(1, {"w": torch.zeros(1)}), {}
    assert list(validate_updates([ClientUpdate("a", 1, request.adapter)], Expected(request, ["a"], 1.0), lost)) == []
    assert lost == {"a": "None examples (at most 1048576) with a loss of None"}
