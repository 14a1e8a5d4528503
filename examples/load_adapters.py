"""Score an exported adapter with transformers and PEFT alone.

fedcollm export runs/demo --role slm --format adapter --with-base --out slm
fedcollm evaluate runs/demo --role slm --write-examples test.jsonl
python examples/load_adapters.py slm test.jsonl
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

place, examples = sys.argv[1], [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
base = AutoModelForCausalLM.from_pretrained(f"{place}/base", dtype="auto")
model = PeftModel.from_pretrained(base, place).eval()
tokenizer = AutoTokenizer.from_pretrained(place)
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
print(correct / len(examples))
