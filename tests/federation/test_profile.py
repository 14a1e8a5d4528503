"""The profile of the clients' data: shares by hand, their sums in every way, and what client and server refuse."""

import dataclasses
import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from tests import parties
from torch import nn

from fedcollm.config import AskedStatistics, StatisticsConfig
from fedcollm.data.audit import profiles
from fedcollm.data.audit.fingerprints import bucket, text_name
from fedcollm.errors import RefusalError, RoundFailedError
from fedcollm.federation import profile, statistics
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.client import Client
from fedcollm.federation.profile import LABELS, LENGTH, SKETCH
from fedcollm.federation.secagg.aggregator import SecureAggregator
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.messages import ClientUpdate, TrainRequest, adapter_bytes
from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.base import Modality
from fedcollm.modalities.evidence import Evidence, with_labels
from fedcollm.modalities.text.examples import TextExample
from fedcollm.transports.local import LocalTransport

ASKED = AskedStatistics(buckets=64)
KINDS = ("heart", "lung")


class Notes(parties.Modelless):
    name = "notes"

    def evidence(self, examples, features, model=None) -> Evidence:
        return with_labels(torch.ones(len(examples), 1), KINDS, [example.answer for example in examples])


@dataclass(frozen=True)
class Thing:
    """An example of a kind of one's own."""

    content: str
    label: None = None


TASK = Notes()


def note(text: str, answer: int | None = 0) -> TextExample:
    return TextExample("1", text, KINDS, answer, KINDS)


LONG = "the pulse is fast and odd after a fall"  # 38 characters
PARTS = {
    "a": [note(LONG), note(LONG.upper(), 1), note("short of breath", 1), note("cough", None)],
    "b": [note(LONG, 1)],
    "c": [note("short of breath, since the morning"), note("a cold")],
}
ALL = [example for part in PARTS.values() for example in part]


def client(name: str, asked: AskedStatistics = ASKED) -> Client:
    return parties.client(name, TASK, nn.Module(), PARTS[name], [], statistics=asked, run="run")


def request(**changes) -> TrainRequest:
    asked = TrainRequest(statistics.ROUND, statistics.blank(TASK, ALL, ASKED, None), evaluate=False, run="run")
    return dataclasses.replace(asked, **changes)


def test_shares_of_a_client_by_hand():
    found = profile.shares(TASK, PARTS["a"], ASKED)
    assert found[LABELS].tolist() == [0.25, 0.5]  # of four examples, one has no label
    assert found[LENGTH].tolist() == [0.5, 0, 0.5, *[0] * 9]  # two under 16 characters, two from 32 to under 64
    at = [bucket(text_name(text), 64) for text in (LONG, "short of breath", "cough")]
    assert len(set(at)) == 3
    assert [float(found[SKETCH][i]) for i in at] == [0.5, 0.25, 0.25]  # both spellings are in one bucket
    assert {name: list(t.shape) for name, t in request().adapter.items()} == {LABELS: [2], LENGTH: [12], SKETCH: [64]}


def test_what_a_template_says_in_every_text_is_left_out():
    asked = dataclasses.replace(ASKED, literals=("Note: ", "Kind:"))
    with_template = [note(f"Note: {example.prompt}\nKind:", example.answer) for example in ALL]
    found, bare = profile.shares(TASK, with_template, asked), profile.shares(TASK, ALL, ASKED)
    assert all(torch.equal(found[name], bare[name]) for name in bare)
    assert not torch.equal(profile.shares(TASK, with_template, ASKED)[SKETCH], bare[SKETCH])


def test_examples_without_labels_and_lengths_have_a_sketch_only():
    found = profile.shares(plain := Plain(), [Thing("x"), Thing("x")], ASKED)
    assert (found.keys(), float(found[SKETCH].max())) == ({SKETCH}, 1.0)
    made = profile.pooled(found, 1, 2, plain, Thing("x"))
    assert (made.kind, made.labels, made.lengths, sum(made.sketch)) == ("other", {}, [], 2)


def test_images_and_recordings_have_lengths_of_their_own():
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.linear_gradient("L").resize((200, 100)).save(picture, "PNG")
    soundfile.write(sound, np.sin(np.arange(3000) / 9), 4000, format="WAV")
    images = profile.shares(Plain(), [File("1", picture.getvalue())], ASKED)
    sounds = profile.shares(Plain(), [Heard("1", Recording(sound.getvalue()))] * 2, ASKED)
    assert int(images[LENGTH].argmax()) == 4  # 128 to under 256 pixels
    assert int(sounds[LENGTH].argmax()) == 2  # 0.5 to under 1 s
    assert float(images[SKETCH].max()) == float(sounds[SKETCH].max()) == 1.0


@dataclass(frozen=True)
class File:
    id: str
    source: bytes


@dataclass(frozen=True)
class Heard:
    id: str
    recording: Recording


class Plain(Notes):
    evidence = Modality.evidence


def secured() -> tuple[LocalTransport, SecureAggregator]:
    keys = {name: Ed25519PrivateKey.generate() for name in PARTS}
    settings = SecureSettings(FixedPoint(3, 64, 1.0), {name: key.public_key() for name, key in keys.items()})
    members = {name: SecureClient(client(name), settings, 3, keys[name]) for name in PARTS}
    return LocalTransport(members), SecureAggregator(settings)


@pytest.mark.parametrize("secure", [False, True])
def test_sums_over_the_clients_are_the_counts_of_all_examples(secure):
    transport, aggregator = LocalTransport({name: client(name) for name in PARTS}), PlainAggregator()
    if secure:
        transport, aggregator = secured()
    mean = aggregator.aggregate(transport.ask, request(), list(PARTS))
    statistics.check_mean(mean.adapter)
    made = profile.pooled(mean.adapter, 3, mean.examples or 0, TASK, ALL[0])
    assert (made.kind, made.clients, made.examples, made.labels) == ("text", 3, 7, {"heart": 3, "lung": 3})
    assert made.lengths == [3, 0, 4, *[0] * 9]
    assert made.sketch[bucket(text_name(LONG), 64)] == 3
    assert profiles.Profile.model_validate(json.loads(made.text())) == made
    assert adapter_bytes(request().adapter) == 4 * (2 + 12 + 64)


def changed(**tensors: torch.Tensor) -> TrainRequest:
    return request(adapter=request().adapter | {f"profile/{name}": tensor for name, tensor in tensors.items()})


RIDGE = AskedStatistics(StatisticsConfig(features="ngrams"))


@pytest.mark.parametrize(
    ("agreed", "asked", "reason"),
    [
        (AskedStatistics(), request(), "federation.profile is false"),
        (RIDGE, request(), "federation.profile is false"),
        (ASKED, request(adapter={statistics.GRAM: torch.zeros(1)}), "neither control nor pseudo_labels"),
        (ASKED, changed(sketch=torch.zeros(65536)), r"sketch of \[65536\] buckets .* 64 were agreed"),
        (ASKED, request(adapter={LABELS: torch.zeros(2)}), "and nothing else"),
        (ASKED, changed(texts=torch.zeros(2)), "and nothing else"),
        (ASKED, changed(labels=torch.zeros(2, dtype=torch.float64)), "and nothing else"),
        (ASKED, changed(labels=torch.ones(2)), "other values than zeros"),
        (ASKED, request(round_index=1), "only round 0"),
    ],
)
def test_client_sends_no_profile_that_its_own_configuration_does_not_name(agreed, asked, reason):
    with pytest.raises(RefusalError, match=reason):
        client("a", agreed).answer(asked)


def test_client_sends_nothing_but_shares_and_its_number_of_examples():
    update = client("a").answer(request(evaluate=True))
    assert update.adapter.keys() == {LABELS, LENGTH, SKETCH}
    assert (update.examples, update.loss, update.score) == (4, 0.0, None)
    other = client("a").answer(changed(labels=torch.zeros(5)))  # a task with other labels learns no number at all
    assert not any(tensor.any() for tensor in other.adapter.values())


GOOD = profile.shares(TASK, PARTS["b"], ASKED)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        (LABELS, [1.5, 0.0], "sum to 1.5"),
        (LENGTH, [1.0, 1.0, *[0.0] * 10], "sum to 2"),
        (SKETCH, [-0.5, 1.0, *[0.0] * 62], "share of -0.5"),
        (LABELS, [0.9, -0.01], "share of -0.01"),
    ],
)
def test_shares_that_no_examples_have_are_refused_by_the_name_of_their_client(name, values, reason):
    @dataclass(frozen=True)
    class Hostile:
        def answer(self, request: TrainRequest) -> ClientUpdate:
            return ClientUpdate("b", statistics.ROUND, false, 1, 0.0)

    false = GOOD | {name: torch.tensor(values)}
    transport = LocalTransport({"a": client("a"), "b": Hostile()})
    aggregate = PlainAggregator().aggregate(transport.ask, request(), ["a", "b"])
    assert (aggregate.participants, reason in aggregate.lost["b"]) == (("a",), True)
    assert statistics.impossible(GOOD) is None
    with pytest.raises(RoundFailedError, match=r"in the mean .* faulty"):
        statistics.check_mean(false)


def test_counts_that_exceed_the_examples_are_refused():
    with pytest.raises(RoundFailedError, match="labels counts 1001 examples of 1000"):
        profile.pooled(GOOD | {LABELS: torch.tensor([0.5, 0.501])}, 3, 1000, TASK, ALL[0])
