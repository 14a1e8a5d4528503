"""An LLM that two processes hold: this one leads, and the other one is started once for all of these tests."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import PATIENCE_SECONDS
from tests.modalities.text.tiny_architectures import VOCABULARY, build
from tests.parties import add_adapter
from tests.runs.test_runner import assert_equal_runs, with_rounds

import fedcollm
from fedcollm.config import ModelConfig
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.modalities.text.forward import branch, logits_of, pad_left
from fedcollm.modalities.text.generation import generate
from fedcollm.modalities.text.models import TextModels
from fedcollm.models.pretrained import load_causal_lm
from fedcollm.models.processes import Processes, together
from fedcollm.runs import build_models
from fedcollm.runs.directory import read_json
from fedcollm.runs.followers import spread_over, to_spread

CPU = torch.device("cpu")


def environment(rank: int, count: int) -> dict[str, str]:
    """What torchrun tells a process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """This process and another one, which ends without a word when these tests do."""
    told = environment(0, 2)
    command = [sys.executable, "-m", "fedcollm", "run", "nothing that the other process would read"]
    other = subprocess.Popen(command, env=os.environ | told | {"RANK": "1"}, stderr=subprocess.PIPE, text=True)
    try:
        with mock.patch.dict(os.environ, told), together() as joined:
            yield joined
        _, said = other.communicate(timeout=PATIENCE_SECONDS)
        assert (other.returncode, said) == (0, "")
    finally:
        other.kill()


@pytest.fixture
def exact(tiny_config):
    """In float32, in which a sum in another order differs by 1e-7."""
    few = {"task.private_size": 8, "task.public_size": 12, "task.test_size": 8}
    return changed(with_rounds(tiny_config, 2), {"llm.dtype": "float32", "slm.dtype": "float32"} | few)


def shared(processes: Processes, place: str, rank: int = 4):
    """A tiny LLM with an adapter that is not zero: alone in this process, and spread over all of them."""
    section = to_spread(ModelConfig(dtype="float32"), TextModels(), CPU, processes)  # type: ignore[arg-type]
    models = []
    for _ in range(2):
        network = load_causal_lm(place, torch.float32, section.attention)
        base = set(network.parameters())
        tuned = add_adapter(network, seed=3, rank=rank)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        models.append(tuned)
    adapter = section.adapter.model_copy(update={"rank": rank})
    models[1].spread = spread_over(processes, models[1], base, section.model_copy(update={"adapter": adapter}), 3)
    return models


def test_two_processes_give_the_losses_and_the_adapters_of_one(exact, processes, tmp_path, monkeypatch):
    two = fedcollm.run(exact, tmp_path / "two")
    with monkeypatch.context() as alone:
        alone.setattr(build_models, "current", lambda: None)
        one = fedcollm.run(exact, tmp_path / "one")
    for first, second in zip(one.records, two.records, strict=True):
        assert second.losses == pytest.approx(first.losses, rel=1e-5)
        assert second.scores == first.scores
    before, after = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    for name, tensor in before.items():  # Adam makes a small difference of a small gradient a larger one of a step
        assert torch.allclose(tensor, after[name], atol=1e-3 * float(tensor.abs().max())), name

    # Each process holds half of the LLM's base: 41,760 values of 4 bytes in all.
    held = [read_json(tmp_path / name, "environment.json")["base_bytes"]["llm"] for name in ("one", "two")]
    assert held == [{"cpu": 167040}, {"process 0": 83520, "process 1": 83520}]

    # A run that is resumed has the same bits, and one process goes on with what two have begun.
    fedcollm.run(with_rounds(exact, 1), tmp_path / "resumed")
    fedcollm.run(exact, tmp_path / "resumed", resume=True)
    assert_equal_runs(tmp_path / "two", tmp_path / "resumed")
    monkeypatch.setattr(build_models, "current", lambda: None)
    fedcollm.run(with_rounds(exact, 3), tmp_path / "two", resume=True)


@pytest.mark.parametrize("kind", ["llama", "bamba"])  # the second one reads one sequence after the other
def test_every_number_of_sequences_gives_the_rows_and_gradients_of_one_process(kind, processes, tmp_path):
    build(kind).save_pretrained(tmp_path)
    alone, spread = shared(processes, str(tmp_path))
    for prompts in ([(3,)], [(3, 4, 5), (6,)], [(3, 4), (5, 6, 7), (8, 9, 10)]):
        inputs, rows = pad_left(prompts, 0), torch.tensor([[False, True], [True, True], [True, True]])[: len(prompts)]
        weights = torch.randn(int(rows.sum()), VOCABULARY, generator=torch.Generator().manual_seed(0))
        gradients = []
        for model in (alone, spread):
            logits = logits_of(model, inputs, rows[:, -inputs["input_ids"].shape[1] :])
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients.append([logits, *torch.autograd.grad((logits * weights).sum(), trained)])
        for one, two in zip(*gradients, strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def test_answers_that_share_a_prompt_and_generated_ones_are_those_of_one_process(processes, model_directories):
    alone, spread = shared(processes, model_directories["llm"])
    branched = [((2, 3), [(4, 5), (6, 7)]), ((8,), [(9, 10), (11, 12)]), ((2, 8), [(9, 10), (3, 4)])]
    inputs = pad_left([(*prompt, 4, 6) for prompt, _ in branched], 0)
    seen, inputs["position_ids"] = branch(inputs, branched)
    rows = torch.ones(3, 2, dtype=torch.bool)
    prompts = [(2, 3, 4), (5,), (6, 7)]
    with torch.inference_mode():
        assert torch.allclose(logits_of(alone, inputs, rows, seen), logits_of(spread, inputs, rows, seen), atol=1e-5)
        texts = [generate(model, prompts, [4, 4, 2], {11}, 14) for model in (alone, spread)]
    assert texts[0] == texts[1]
    assert [len(tokens) for tokens in texts[0]] != [0, 0, 0]


def test_what_cannot_be_spread_is_refused(processes, tiny_config):
    with pytest.raises(UserError, match=r"llm\.device_map auto spreads"):
        to_spread(ModelConfig(device_map="auto"), TextModels(), CPU, processes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"llm\.gradient_checkpointing is for one process"):
        to_spread(ModelConfig(gradient_checkpointing=True), TextModels(), CPU, processes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"llm\.quantization is for one process.* Set it to none"):
        to_spread(ModelConfig(quantization="int8"), TextModels(), CPU, processes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="device: meta"):
        to_spread(ModelConfig(), TextModels(), torch.device("meta"), processes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="causal language model"):
        to_spread(ModelConfig(), mock.Mock(), CPU, processes)
