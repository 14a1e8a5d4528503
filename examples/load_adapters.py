"""Score the adapters of a run with transformers and PEFT alone, without fedcollm.

fedcollm evaluate runs/demo --role slm --write-examples test.jsonl
python examples/load_adapters.py runs/demo test.jsonl
"""

import json
import sys
from pathlib import Path

from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

run, examples = sys.argv[1], [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
dtypes = json.loads(Path(run, "environment.json").read_text())["dtype"]  # dtype of each frozen base during the run
for role in ("slm", "llm"):
    model = AutoPeftModelForCausalLM.from_pretrained(f"{run}/adapters/{role}", dtype=dtypes[role]).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    columns = [tokenizer(" " + choice).input_ids[0] for choice in examples[0]["choices"]]  # each choice is one token
    prompts = [tokenizer(example["prompt"], return_tensors="pt") for example in examples]
    chosen = [model(**prompt).logits[0, -1, columns].argmax().item() for prompt in prompts]
    correct = sum(choice == example["answer"] for choice, example in zip(chosen, examples, strict=True))
    print(role, correct / len(examples))
