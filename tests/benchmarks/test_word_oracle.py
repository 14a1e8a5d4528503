"""The word oracle: its gate opens at one word only, and its measures are as worked by hand."""

from types import SimpleNamespace

import pytest
import torch
from benchmarks.word_gate import direction, gate
from benchmarks.word_oracle import compared, form
from tests.parties import add_adapter

from fedcollm.messages import ClientUpdate, PhaseAnswer
from fedcollm.modalities.base import outputs
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.transports.wire import encode


def example(noun: str) -> TextExample:
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), noun in ("red", "blue"), ("animal", "colour"))


def losses(task, slm, own) -> dict[str, float]:
    with torch.no_grad():
        return {noun: float(outputs(task, slm, task.collate(examples))[1]) for noun, examples in own.items()}


def test_gate_opens_at_its_word_and_costs_a_neuron_elsewhere(llama, tokenizer):
    task, slm = TextTask("toy", tokenizer, 16, 32), add_adapter(llama, rank=2, seed=1)
    nouns = ("cat", "dog", "red", "blue")
    own = {noun: [example(noun)] for noun in nouns}
    parties = SimpleNamespace(modality=task, slm=slm, examples=own, parts=SimpleNamespace(public=[]))
    (word,) = set(tokenizer("the dog is a :")["input_ids"]) - set(tokenizer("the cat is a :")["input_ids"])
    theta = read_adapter(slm)
    before = losses(task, slm, own)
    write_adapter(slm, gate(theta, direction(parties, word)))
    after = losses(task, slm, own)
    assert not torch.tensor(after.pop("dog")).isfinite()
    assert after == pytest.approx({noun: before[noun] for noun in after}, abs=0.2)  # without one of 32 neurons


def test_measures_by_hand():
    # 3 x 3 pairs, in none of which the holder takes longer; 2 of the 20 ways to choose 3 of 6 are as extreme
    told = compared([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert told["auc"] == 0.0
    assert told["auc_95"] == [0.0, 0.0]
    assert told["mann_whitney_p"] == pytest.approx(0.1)
    assert told["kolmogorov_smirnov_p"] == pytest.approx(0.1)
    assert compared([1.0, 2.0], [1.0, 2.0])["auc"] == 0.5


def test_form_is_all_but_values():
    failed = ClientUpdate("0", 1, {"w": torch.zeros(2)}, 3, 0.0, None, {"clients": 0.5})
    trained = ClientUpdate("0", 1, {"w": torch.ones(2)}, 3, 1 / 3, None, {"clients": 1 / 7})
    silent = ClientUpdate("0", 1, {"w": torch.ones(2)}, 3, None, None, {"clients": 0.5})
    longer = ClientUpdate("0", 1, {"w": torch.ones(3)}, 3, 0.5, None, {"clients": 0.5})
    other = PhaseAnswer("0", "00", {"keys": b"x"})
    assert form(encode(failed)) == form(encode(trained))
    assert len({form(encode(one)) for one in (failed, silent, longer, other)}) == 4
