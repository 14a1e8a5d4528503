"""A model spread over the devices of one process. Without GPUs, all of the devices are the CPU: what is shown is that
accelerate's hooks go with adapters, not that tensors move."""

from unittest import mock

import accelerate
import pytest
import torch
from tests.conftest import tiny_llama
from tests.parties import add_adapter
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError, in_section
from fedcollm.modalities.text import models
from fedcollm.modalities.text.forward import logits_of, pad_left
from fedcollm.models.device_map import check_placed
from fedcollm.models.pretrained import load_causal_lm

SPREAD, CUDA = ModelConfig(device_map="balanced"), torch.device("cuda")


def test_adapters_learn_the_same_on_a_model_with_accelerates_hooks():
    inputs, rows = pad_left([(2, 3, 4), (5, 6)], 0), torch.ones(2, 1, dtype=torch.bool)
    found = []
    for spread in (False, True):
        network = tiny_llama()
        if spread:
            places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
            layers = {"model.layers.0": "cpu", "model.layers.1": "cpu"}
            network = accelerate.dispatch_model(network, places | layers, force_hooks=True)
            assert sum(hasattr(module, "_hf_hook") for module in network.modules()) > 2
        model = add_adapter(network, seed=1, rank=2)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        logits = logits_of(model, inputs, rows)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), trained)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_map_is_for_gpus_and_reaches_transformers(model_directories, monkeypatch):
    asked = mock.Mock(return_value=load_causal_lm(model_directories["llm"], torch.float32, device_map={"": "cpu"}))
    monkeypatch.setattr(models, "load_causal_lm", asked)
    section = SPREAD.model_copy(update={"source": model_directories["llm"]})
    for device in (torch.device("cpu"), CUDA):
        models.TextModels().load_model(section, "llm", device, 0)
    assert [call.args[-1] for call in asked.call_args_list] == [None, "balanced"]


def network(places: dict | None) -> nn.Module:
    made = nn.Linear(1, 1)
    if places is not None:
        made.hf_device_map = places
    return made


def test_a_network_on_gpus_alone_and_any_network_on_a_cpu_are_taken():
    check_placed(network({"model.layers.0": 0, "model.layers.1": 1}), SPREAD, CUDA)
    check_placed(network(None), SPREAD, torch.device("cpu"))


@pytest.mark.parametrize(
    ("places", "device", "words"),
    [
        ({"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"}, CUDA, "2 parts.*from model.layers.1 on"),
        (None, CUDA, "causal language models"),
        ({"model.layers.0": 0}, torch.device("cuda", 1), "device is cuda:1"),
    ],
)
def test_a_network_that_is_not_on_gpus_is_refused(places, device, words):
    with pytest.raises(UserError, match=rf"llm\.device_map: balanced.*{words}"), in_section("llm"):
        check_placed(network(places), SPREAD, device)
