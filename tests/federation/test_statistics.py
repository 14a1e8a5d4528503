"""Ridge regression from sums over clients: by hand on two examples, and the same as from all examples together."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests import parties
from tests.parties import agreeing
from torch import Tensor, nn

from fedcollm.config import AskedStatistics, FederationConfig, StatisticsConfig
from fedcollm.errors import RefusalError, RoundFailedError, UserError
from fedcollm.federation import sent_statistics, statistics
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.client import Client
from fedcollm.federation.operator import Operator
from fedcollm.federation.secagg.aggregator import SecureAggregator, SimulatedQuantization
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.secagg.noise import private_fixed_point
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.federation.statistics import (
    GRAM,
    ROUND,
    TARGETS,
    blank,
    check_mean,
    impossible,
    moments,
    pooled,
    scores,
    solve,
)
from fedcollm.messages import ClientUpdate, Failure, TrainRequest, adapter_bytes
from fedcollm.modalities.evidence import Evidence, with_choices, with_labels
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy
from fedcollm.transports.endpoint import ClientEndpoint
from fedcollm.transports.local import LocalTransport
from fedcollm.transports.wire import decode, encode

FEATURES = StatisticsConfig(features="ngrams")
ASKED = AskedStatistics(FEATURES)
LABELS = ("a", "b")


@dataclass(frozen=True)
class Point:
    """An example whose features are given: one row if it has a label, otherwise a row per choice."""

    rows: tuple[tuple[float, ...], ...]
    answer: int | None
    own: bool = False
    labels: tuple[str, ...] = LABELS

    @property
    def label(self) -> str | None:
        return None if self.answer is None else self.labels[self.answer]


class Points(parties.Modelless):
    name = "points"

    def evidence(self, examples, features, model=None) -> Evidence:
        assert features == FEATURES
        rows, answers = torch.tensor([row for e in examples for row in e.rows]), [e.answer for e in examples]
        if examples[0].own:
            return with_choices(rows, [len(e.rows) for e in examples], answers)
        return with_labels(rows, examples[0].labels, answers)


TASK = Points()
TWO = [Point(((1.0, 0.0),), 0), Point(((0.6, 0.8),), 1)]


def of(examples) -> dict[str, Tensor]:
    return moments(TASK, examples, FEATURES, None)


# --- by hand ---


def test_ridge_regression_by_hand():
    # XᵀX = [[1.36, 0.48], [0.48, 0.64]], XᵀY = [[0.4, -0.4], [-0.8, 0.8]]; with λ = 1, the determinant is 3.64
    found = of(TWO)
    assert found[GRAM].tolist() == pytest.approx([0.68, 0.24, 0.32])
    assert found[TARGETS].tolist() == [pytest.approx([0.2, -0.2]), pytest.approx([-0.4, 0.4])]
    weights = solve(found, ridge=1 / 2)
    assert weights.tolist() == [pytest.approx([2 / 7, -2 / 7]), pytest.approx([-4 / 7, 4 / 7])]
    part = TASK.evidence(TWO, FEATURES)
    assert [values.tolist() for values in scores(weights, part)] == [
        pytest.approx([2 / 7, -2 / 7]),
        pytest.approx([-2 / 7, 2 / 7]),
    ]


def test_choices_of_an_examples_own_by_hand():
    # less their mean, the rows are ±(1, -1) / 2, and each weighs 1/2; with λ = 1/2, W = (1, -1) / 2
    one = Point(((1.0, 0.0), (0.0, 1.0)), 0, own=True)
    found = of([one])
    assert found[GRAM].tolist() == pytest.approx([0.25, -0.25, 0.25])
    assert found[TARGETS].tolist() == [pytest.approx([0.5]), pytest.approx([-0.5])]
    weights = solve(found, ridge=0.5)
    assert weights[:, 0].tolist() == pytest.approx([0.5, -0.5])
    (values,) = scores(weights, TASK.evidence([one], FEATURES))
    assert values.tolist() == pytest.approx([0.5, -0.5])


def test_every_example_weighs_one_however_many_choices_it_has():
    two, four = (Point(((1.0, 0.0), *[(0.0, 1.0)] * n), 0, own=True) for n in (1, 3))
    parts = [of([two]), of([four])]
    for name, tensor in of([two, four]).items():
        assert torch.allclose(tensor, (parts[0][name] + parts[1][name]) / 2)


def test_what_the_choices_of_an_example_share_does_not_count():
    one = Point(((0.5, 0.5, 0.0), (0.5, 0.0, 0.5)), 0, own=True)
    weights = solve(of([one]), ridge=0.1)
    assert weights[0].item() == 0.0


def test_unlabelled_examples_tell_about_features_only():
    found = of([TWO[0], dataclasses.replace(TWO[1], answer=None)])
    assert found[GRAM].tolist() == pytest.approx([0.68, 0.24, 0.32])
    assert found[TARGETS].tolist() == [pytest.approx([0.5, -0.5]), [0.0, 0.0]]


def test_negative_eigenvalues_of_noise_count_as_zero():
    noisy = {GRAM: torch.tensor([1.0, 0.0, -0.5]), TARGETS: torch.tensor([[1.0], [1.0]])}
    assert solve(noisy, ridge=0.25)[:, 0].tolist() == pytest.approx([0.8, 4.0])  # 1 / (1 + λ), 1 / λ


def test_a_ridge_below_the_rounding_of_float32_counts_as_that():
    blank_part = {GRAM: torch.tensor([1.0, 0.0, 0.0]), TARGETS: torch.tensor([[1.0], [2.0**-23]])}
    assert solve(blank_part, ridge=1e-300)[:, 0].tolist() == [pytest.approx(1.0), pytest.approx(1.0)]


def test_a_solution_that_is_not_finite_is_refused():
    huge = {GRAM: torch.tensor([0.0]), TARGETS: torch.tensor([[3e38]])}
    with pytest.raises(RoundFailedError, match=r"no finite solution with a ridge of 0\.1 per example"):
        solve(huge, ridge=0.1)


def test_parts_are_pooled_by_their_numbers_of_examples():
    one, other = ({GRAM: torch.tensor([x]), TARGETS: torch.tensor([[-x]])} for x in (1.0, 0.5))
    assert pooled([(one, 1), (other, 3)])[GRAM].tolist() == [0.625]
    assert pooled([(one, 1), (other, 3)])[TARGETS].tolist() == [[-0.625]]


def test_parts_of_many_examples_add_up(monkeypatch):
    examples = [TWO[i % 2] for i in range(5)]
    whole = of(examples)
    monkeypatch.setattr(statistics, "_EXAMPLES_AT_ONCE", 2)
    assert all(torch.allclose(tensor, whole[name]) for name, tensor in of(examples).items())


def test_labels_must_be_the_same_in_all_parts(monkeypatch):
    monkeypatch.setattr(statistics, "_EXAMPLES_AT_ONCE", 1)
    with pytest.raises(UserError, match="share their labels"):
        of([TWO[0], dataclasses.replace(TWO[1], labels=("b", "a"))])


def test_statistics_are_a_triangle_and_a_target_a_label():
    found = blank(TASK, TWO, ASKED, None)
    assert {name: list(tensor.shape) for name, tensor in found.items()} == {GRAM: [3], TARGETS: [2, 2]}
    assert all(tensor.dtype == torch.float32 and not tensor.any() for tensor in found.values())
    # 2,048 features and 21 labels: 8.6 MB
    assert 4 * (2048 * 2049 // 2 + 2048 * 21) == 8_564_736


# --- clients ---


def some(seed: int, count: int) -> list[Point]:
    """Random points, none longer than 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)
    return [Point((tuple(row.tolist()),), int(row[0] > row[1])) for row in rows]


PARTS = {name: some(i, 3 + 2 * i) for i, name in enumerate("abcd")}
ALL = [example for part in PARTS.values() for example in part]


def client(name: str, **agreed) -> Client:
    return parties.client(name, TASK, nn.Module(), PARTS[name], [], **{"statistics": ASKED, "run": "run"} | agreed)


CLIENTS = {name: client(name) for name in PARTS}


def request(**changes) -> TrainRequest:
    asked = TrainRequest(ROUND, blank(TASK, ALL, ASKED, None), evaluate=False, run="run")
    return dataclasses.replace(asked, **changes)


def test_client_answers_with_its_statistics_and_trains_nothing():
    update = CLIENTS["b"].answer(request(evaluate=True))
    expected = of(PARTS["b"])
    assert all(torch.equal(update.adapter[name], expected[name]) for name in expected)
    assert (update.client, update.round_index, update.examples, update.loss, update.score) == ("b", ROUND, 5, 0.0, None)
    assert update.seconds["clients"] > 0


def secured(privacy: ClientPrivacy | None = None, uniform=False) -> tuple[LocalTransport, SecureAggregator]:
    clients = {name: client(name, privacy=privacy, rounds=1) for name in PARTS}
    keys = {name: Ed25519PrivateKey.generate() for name in clients}
    encoding = private_fixed_point(4, privacy) if privacy else FixedPoint(4, 1 if uniform else 64, 1.0)
    roster = {name: key.public_key() for name, key in keys.items()}
    settings = SecureSettings(encoding, roster, None, uniform, privacy)
    members = {name: SecureClient(one, settings, 4, keys[name]) for name, one in clients.items()}
    return LocalTransport(members), SecureAggregator(settings)


def test_mean_of_the_clients_is_that_of_all_their_examples():
    aggregate = PlainAggregator().aggregate(LocalTransport(CLIENTS).ask, request(), list(PARTS))
    assert aggregate.examples == len(ALL) == 24
    for name, tensor in of(ALL).items():
        assert torch.allclose(aggregate.adapter[name], tensor, rtol=0, atol=1e-7)
    assert aggregate.bytes_up == aggregate.bytes_down == adapter_bytes(request().adapter)


@pytest.mark.parametrize("simulated", [False, True], ids=["secure", "simulated"])
def test_secure_aggregation_gives_the_same_predictions(simulated):
    transport, aggregator = secured()
    if simulated:
        transport, aggregator = LocalTransport(CLIENTS), SimulatedQuantization(encoding=aggregator.settings.encoding)
    aggregate = aggregator.aggregate(transport.ask, request(), list(PARTS))
    assert aggregate.examples == 24
    exact = of(ALL)
    assert all(torch.allclose(aggregate.adapter[name], exact[name], rtol=0, atol=1e-6) for name in exact)
    part = TASK.evidence(ALL, FEATURES)
    one, other = (scores(solve(found, 0.3 / 24), part) for found in (aggregate.adapter, exact))
    assert [int(values.argmax()) for values in one] == [int(values.argmax()) for values in other]


@pytest.mark.parametrize("secure", [False, True])
def test_uniform_mean_is_that_of_the_clients_means(secure):
    transport, aggregator = LocalTransport(CLIENTS), PlainAggregator(FederationConfig(aggregation="uniform"))
    if secure:
        transport, aggregator = secured(uniform=True)
    aggregate = aggregator.aggregate(transport.ask, request(), list(PARTS))
    each = [of(part) for part in PARTS.values()]
    expected = sum(found[GRAM] for found in each) / 4
    assert torch.allclose(aggregate.adapter[GRAM], expected, rtol=0, atol=1e-6)
    assert aggregate.examples == 24


def test_client_level_privacy_clips_noises_and_counts_statistics_like_an_update():
    clip = 0.1
    transport, aggregator = secured(ClientPrivacy(clip, 1e-3, 1e-4), uniform=True)
    aggregate = aggregator.aggregate(transport.ask, request(), list(PARTS))
    clipped = [_clipped(of(part), clip) for part in PARTS.values()]
    expected = {name: sum(found[name] for found in clipped) / 4 for name in (GRAM, TARGETS)}
    difference = torch.cat([(aggregate.adapter[name] - expected[name]).flatten() for name in expected])
    assert 0 < difference.abs().max() < 10 * clip * 1e-3  # ten standard deviations of the noise in the sum
    assert aggregate.examples is None
    members = transport._clients.values()
    assert all(member.client.spent["rounds"] == 1 for member in members if isinstance(member, SecureClient))
    with pytest.raises(UserError, match="has spent its privacy in 1 rounds"):
        aggregator.aggregate(transport.ask, request(), list(PARTS))


def _clipped(found: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    norm = torch.cat([tensor.flatten() for tensor in found.values()]).norm()
    return {name: tensor * (clip / max(norm, clip)) for name, tensor in found.items()}


# --- what a client refuses ---


def changed(**tensors) -> TrainRequest:
    return request(adapter=request().adapter | tensors)


@pytest.mark.parametrize(
    ("agreed", "asked", "reason"),
    [
        ({"statistics": AskedStatistics()}, request(), "neither control nor pseudo_labels"),
        ({"privacy": ExamplePrivacy(1.0, 1.0, 1e-4, 0.5, 2)}, request(), "DP-SGD"),
        ({}, request(run="theirs"), "a request of run 'theirs'"),
        ({}, request(round_index=1), "only round 0"),
        ({}, request(round_index=False), "round is False, which is not an integer"),
        ({}, request(round_index=0.0), "round is 0.0, which is not an integer"),
        (
            {},
            changed(**{GRAM: torch.zeros(10, dtype=torch.float64)}),
            "statistics/gram and statistics/targets in float32",
        ),
        ({}, changed(**{TARGETS: torch.full((4, 2), 0.1)}), "other values than zeros"),
        ({}, changed(w=torch.zeros(1)), "and nothing else"),
        ({}, request(adapter={GRAM: request().adapter[GRAM]}), "statistics/gram and statistics/targets"),
        ({"trains": False}, request(adapter={}), "client a trains nothing"),
    ],
)
def test_client_sends_no_statistics_that_its_own_configuration_does_not_name(agreed, asked, reason):
    one = agreeing(client("a"), **agreed)
    with pytest.raises(RefusalError, match=reason):
        one.train(asked)
    assert one.spent == {}


@pytest.mark.parametrize("failing", ["shapes", "examples"])
def test_client_whose_examples_have_no_such_statistics_answers_with_zeros(failing, monkeypatch):
    one, asked = client("a"), changed(**{GRAM: torch.zeros(9)}) if failing == "shapes" else request()
    if failing == "examples":
        monkeypatch.setattr(type(one.modality), "evidence", lambda *args: 1 / 0)
    sent = one.answer(asked)
    assert (sent.client, sent.round_index, sent.examples, sent.loss) == ("a", 0, len(PARTS["a"]), 0.0)
    assert all(torch.equal(tensor, asked.adapter[name]) for name, tensor in sent.adapter.items())
    assert one.operator.failure is not None


@pytest.mark.parametrize("now", [[*PARTS["d"], *some(99, 1)], PARTS["d"][:-1], [*PARTS["d"], *PARTS["d"]]])
def test_client_sends_the_same_statistics_for_the_whole_run_whatever_its_examples_are_now(now):
    one = client("d")
    sent = one.answer(request())
    assert list(one.spent) == ["sent/run", "statistics/run"]
    for examples in (PARTS["d"], now):
        again = dataclasses.replace(one, examples=examples, spent=dict(one.spent), operator=Operator())
        answer = again.answer(request())
        assert dataclasses.replace(answer, adapter={}, seconds={}) == dataclasses.replace(sent, adapter={}, seconds={})
        assert all(torch.equal(tensor, sent.adapter[name]) for name, tensor in answer.adapter.items())
        assert (again.operator.failure is None) == (examples is PARTS["d"])


@pytest.mark.parametrize("kept", [None, "9 damaged", "9 AAAA", "8"])
def test_statistics_that_are_kept_no_more_are_not_replaced_and_the_server_reads_no_reason(kept):
    one = client("d")
    one.answer(request())
    del one.spent["sent/run"]
    if kept is not None:
        one.spent["sent/run"] = kept
    grown = dataclasses.replace(one, examples=[*PARTS["d"], *some(99, 1)])
    with pytest.raises(UserError, match="other statistics in this run"):
        grown.answer(request())
    answer = decode(ClientEndpoint("d", grown, 2**20)(encode(request())), 2**20)
    assert answer == Failure("d", "the client can't carry out the request; its operator sees why")


def test_long_statistics_are_known_by_their_digest_alone(monkeypatch):
    monkeypatch.setattr(sent_statistics, "_LONGEST_BYTES", 100)
    one = client("d")
    one.answer(request())
    assert list(one.spent) == ["statistics/run"]


@pytest.mark.parametrize("index", [False, 0.0])
def test_opening_of_round_zero_has_one_name_only(index):
    transport, aggregator = secured()
    with pytest.raises(UserError, match="a plain update was asked for"):
        aggregator.aggregate(transport.ask, request(round_index=index), list(PARTS))
    members = transport._clients.values()
    assert all(member.opened == {} for member in members if isinstance(member, SecureClient))


# --- what the server refuses ---


@dataclass(frozen=True)
class Hostile:
    """A client that answers with other statistics than its own."""

    client: Client
    values: dict[str, list]
    examples: int = 1

    def answer(self, request: TrainRequest) -> ClientUpdate:
        sent = {name: torch.tensor(values) for name, values in self.values.items()}
        return ClientUpdate(self.client.id, ROUND, sent, self.examples, 0.0)


GOOD = {GRAM: [0.68, 0.24, 0.32], TARGETS: [[0.2, -0.2], [-0.4, 0.4]]}  # those of `TWO`, by hand above


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({GRAM: [-0.1, 0.0, 0.9]}, "-0.1 on its diagonal"),
        ({GRAM: [0.7, 0.0, 0.5]}, "trace of 1.2"),
        ({GRAM: [0.36, 0.5, 0.25]}, "XᵀX is 0.2 larger"),  # √(0.36 · 0.25) = 0.3
        ({GRAM: [0.36, -0.5, 0.25]}, "XᵀX is 0.2 larger"),
        ({GRAM: [0.36, 0.0, 0.25], TARGETS: [[0.0, -0.7], [0.0, 0.0]]}, "XᵀY is 0.1 larger"),  # √0.36 = 0.6
        ({GRAM: [0.36, 0.0, 0.25], TARGETS: [[0.0, 0.0], [1.5, 0.0]]}, "XᵀY is 1 larger"),
    ],
)
def test_statistics_that_no_examples_have_are_refused_by_the_name_of_their_client(values, reason):
    assert impossible({name: torch.tensor(found) for name, found in GOOD.items()}) is None
    asked = request(adapter={name: torch.zeros_like(torch.tensor(found)) for name, found in GOOD.items()})
    parties_of = {"a": Hostile(CLIENTS["a"], GOOD, 2), "b": Hostile(CLIENTS["b"], GOOD | values, 2)}
    aggregate = PlainAggregator().aggregate(LocalTransport(parties_of).ask, asked, ["a", "b"])
    assert aggregate.participants == ("a",)
    assert reason in aggregate.lost["b"]
    with pytest.raises(RoundFailedError, match=r"in the mean .* faulty"):
        check_mean({name: torch.tensor(found) for name, found in (GOOD | values).items()})


def test_no_client_claims_a_number_of_examples_that_outweighs_all_others():
    asked = request(adapter={name: torch.zeros_like(torch.tensor(found)) for name, found in GOOD.items()})
    parties_of = {"a": Hostile(CLIENTS["a"], GOOD, 2), "b": Hostile(CLIENTS["b"], GOOD, 2**31)}
    aggregate = PlainAggregator().aggregate(LocalTransport(parties_of).ask, asked, ["a", "b"])
    assert (aggregate.participants, aggregate.examples) == (("a",), 2)
    assert "2147483648 examples (at most 1048576)" in aggregate.lost["b"]


def test_statistics_of_real_examples_are_possible():
    own = [Point(((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)), 1, own=True), Point(((1.0, 0.0), (-1.0, 0.0)), 0, own=True)]
    for examples in (TWO, TWO[:1], ALL, own, own[1:]):
        assert impossible(of(examples)) is None


def test_statistics_beyond_the_largest_norm_are_called_statistics():
    aggregator = PlainAggregator(FederationConfig(max_update_norm=0.5))
    with pytest.raises(RoundFailedError, match=r"the statistics have an L2 norm of .*federation\.max_update_norm 0\.5"):
        aggregator.aggregate(LocalTransport(CLIENTS).ask, request(), list(PARTS))
