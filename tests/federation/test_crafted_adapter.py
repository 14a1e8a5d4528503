"""What the limits on θ leave to a dishonest server: a θ that one client's examples change, and no other's.

A LoRA whose B is zero, and whose A is orthogonal to whatever all tokens but one put into its layer, learns from
examples with that token only. `docs/security.md` says so; differential privacy is what bounds it.
"""

import pytest
import torch
from tests import parties
from tests.parties import add_adapter

from fedcollm.config import FederationConfig
from fedcollm.federation.limits import Limits
from fedcollm.messages import Adapter, TrainRequest
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter

NOUNS = {"a": "cat", "b": "dog", "c": "red", "d": "blue"}
LIMITS = Limits.of(FederationConfig())


def example(noun: str) -> TextExample:
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), noun in ("red", "blue"), ("animal", "colour"))


@pytest.fixture
def slm(llama):
    return add_adapter(llama, rank=2, seed=1)


def crafted(slm, tokenizer, word: str) -> Adapter:
    """θ that only examples with a word change: all is zero except one row of A in the first layer."""
    others = sorted({token for noun in (*NOUNS.values(), "animal colour") if noun != word
                     for token in tokenizer(f"the {noun} is a :")["input_ids"]})  # fmt: skip
    (own,) = set(tokenizer(f"the {word} is a :")["input_ids"]) - set(others)
    embeddings = slm.get_input_embeddings().weight.detach().double()
    span = torch.linalg.qr(embeddings[others].T).Q
    row = embeddings[own] - span @ (span.T @ embeddings[own])
    theta = {name: torch.zeros_like(tensor) for name, tensor in read_adapter(slm).items()}
    name = next(name for name in theta if "layers.0." in name and "q_proj.lora_A" in name)
    theta[name][0] = (row / row.norm()).float() * 0.01
    return theta


def share(changes: dict[str, Adapter], client: str) -> float:
    """How much of the sum of all changes is one client's, by squared lengths."""
    total = {name: sum(change[name] for change in changes.values()) for name in changes[client]}
    own = sum(float((changes[client][name] * total[name]).sum()) for name in total)
    return own / sum(float(tensor.square().sum()) for tensor in total.values())


@pytest.mark.parametrize("holder", NOUNS)
def test_crafted_adapter_within_the_limits_makes_the_sum_the_update_of_one_client(slm, tokenizer, holder):
    task, theta = TextTask("toy", tokenizer, 16, 32), crafted(slm, tokenizer, NOUNS[holder])
    LIMITS.check_request(TrainRequest(1, theta))  # nothing to refuse
    changes: dict[str, Adapter] = {}
    for name, noun in NOUNS.items():
        one = parties.client(name, task, slm, [example(noun)], [], learning_rate=1e-2, limits=LIMITS)
        tuned = one.train(TrainRequest(1, theta)).adapter
        changes[name] = {key: tensor - theta[key] for key, tensor in tuned.items()}
        assert one.operator.failure is None
    assert share(changes, holder) > 0.9
