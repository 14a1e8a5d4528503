"""The server's own update on labelled public examples, and what a round does with it."""

import dataclasses

import peft
import pytest
import torch
from tests import parties
from tests.parties import add_adapter

from fedcollm.config import ClientConfig, FederationConfig
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.public_reference import OwnUpdate
from fedcollm.messages import Adapter, ClientUpdate, TrainRequest
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.pretrained import load_causal_lm
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair

LABELS = ("animal", "colour")
PUBLIC = [
    TextExample(noun, f"the {noun} is a :", LABELS, k % 2, LABELS) for k, noun in enumerate(("cat", "red", "dog"))
]
SETTINGS = ClientConfig(batch_size=1, learning_rate=1e-2)
IDENTITY = RunIdentity("run", 3)


@pytest.fixture(scope="module")
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


@pytest.fixture(scope="module")
def slm(model_directories) -> peft.PeftModel:
    return add_adapter(load_causal_lm(model_directories["slm"], torch.float32), rank=2, seed=1)


def equal(one: Adapter, two: Adapter) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_own_update_is_that_of_a_client_and_leaves_the_model_as_it_was(task, slm):
    theta = read_adapter(slm)
    own = OwnUpdate(ModelPair(task, slm), PUBLIC, SETTINGS, IDENTITY)
    first, again, later = (own(TrainRequest(index, theta)) for index in (1, 1, 2))
    assert equal(read_adapter(slm), theta)
    assert equal(first, again)
    assert not equal(first, theta)
    assert not equal(first, later)


def test_round_with_trust_ignores_who_moves_against_the_server(task, slm):
    theta = read_adapter(slm)
    own = OwnUpdate(ModelPair(task, slm), PUBLIC, SETTINGS, IDENTITY)
    honest = parties.client("a", task, slm, PUBLIC, [], batch_size=1, learning_rate=1e-2).answer(TrainRequest(1, theta))
    assert isinstance(honest, ClientUpdate)
    against = {name: 2 * theta[name] - tensor for name, tensor in honest.adapter.items()}
    updates = [honest, dataclasses.replace(honest, client="b", adapter=against)]
    aggregator = PlainAggregator(FederationConfig(aggregation="trust"), reference=own)
    got = aggregator.aggregate(lambda _: iter(updates), TrainRequest(1, theta), ["a", "b"])
    assert got.notes == ("the aggregation rule gave no weight to the change of client b",)
    length = sum(float((own(TrainRequest(1, theta))[name] - theta[name]).square().sum()) for name in theta)
    moved = sum(float((got.adapter[name] - theta[name]).square().sum()) for name in theta)
    assert moved == pytest.approx(length, rel=1e-3)
