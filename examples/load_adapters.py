"""Score a run's adapters with transformers and PEFT alone.

fedcollm evaluate runs/demo --role slm --write-examples test.jsonl
python examples/load_adapters.py runs/demo test.jsonl
"""

import json
import sys
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

run, examples = sys.argv[1], [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
dtypes = json.loads(Path(run, "environment.json").read_text())["dtype"]  # of the frozen bases, as the run had them
for role in ("slm", "llm"):
    model = AutoPeftModelForCausalLM.from_pretrained(f"{run}/adapters/{role}", dtype=dtypes[role]).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"
    correct = 0
    for example in examples:
        prompt = example["prompt"].rstrip()
        start = len(tokenizer(prompt).input_ids)
        batch = tokenizer([f"{prompt} {choice}" for choice in example["choices"]], return_tensors="pt", padding=True)
        with torch.inference_mode():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        said = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        answer = batch.attention_mask[:, 1:].bool() & (torch.arange(said.shape[1]) >= start - 1)
        correct += int((said * answer).sum(-1).argmax()) == example["answer"]  # the likeliest choice
    print(role, correct / len(examples))
