"""The code in a model card: how a trained model is loaded, without and with fedcollm."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedcollm.config import ModelConfig
from fedcollm.models.pretrained import SHIPPED
from fedcollm.runs.portable import BASE, Portable

#: Scores choices with transformers alone. `{load}` loads the model, and `{text}` gives the prompt's form.
_CHOICES = """\
import json, sys, torch
{imports}
tokenizer = AutoTokenizer.from_pretrained(".")
{load}

def nats(prompt, choice):  # log-likelihood of a choice after a prompt
    asked, both = ({tokens} for text in (prompt, prompt + choice))
    start = min(asked.shape[1], both.shape[1] - 1)
    rows = model(both).logits[0, start - 1 : -1].log_softmax(-1)
    return rows.gather(1, both[0, start:, None]).sum().item()

right = []
with torch.inference_mode(), open(sys.argv[1], encoding="utf-8") as file:
    for one in map(json.loads, file):
        prompt = {prompt}
        values = [nats(prompt, choice) for choice in one["choices"]]
        right.append(values.index(max(values)) == one["answer"])
print(sum(right) / len(right))"""

#: Generates a free answer with transformers alone.
_FREE = """\
import json, sys, torch
{imports}
tokenizer = AutoTokenizer.from_pretrained(".")
{load}

with open(sys.argv[1], encoding="utf-8") as file:
    for one in map(json.loads, file):
        prompt = {prompt}
        inputs = tokenizer(prompt.rstrip(), return_tensors="pt"{special})
        made = model.generate(**inputs, do_sample=False, max_new_tokens={most})
        print(tokenizer.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip())"""


def usage(portable: Portable, library: str, file: str, has_base: bool) -> list[str]:
    """Return the paragraphs on how a model is loaded.

    Args:
        portable: what travels with it.
        library: the library that loads it: peft, transformers, gguf or onnx.
        file: its main file, for forms that have one.
        has_base: whether its base is beside it.
    """
    own = library in ("peft", "transformers")
    paragraphs = ["With fedcollm, in this directory:\n\n" + _indented(_FEDCOLLM)] if own else []
    return paragraphs + _PARAGRAPHS[library](portable, file, has_base)


_FEDCOLLM = """\
fedcollm predict . TABLE.csv --out ANSWERS.csv

from fedcollm.runs.predictor import Predictor
Predictor.load(".").predict(rows)"""


def is_local(section: ModelConfig) -> bool:
    """Return whether a base comes from a place of the machine that trained it, whose path means nothing elsewhere."""
    return Path(section.source).is_absolute() or section.source.startswith((".", "~"))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def _peft(portable: Portable, file: str, has_base: bool) -> list[str]:
    section = portable.model
    made = section.cut or section.heal is not None or section.pretrain_epochs or section.source in SHIPPED
    if not has_base and (made or is_local(section)):
        return [
            "Its base is on no model hub. To take it along, for transformers and PEFT alone: "
            "`fedcollm export RUN_DIR --format adapter --with-base --out DIR`."
        ]
    if not portable.task.is_text:
        return []
    base = BASE if has_base else section.source
    load = (
        f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
        'model = PeftModel.from_pretrained(base, ".").eval()'
    )
    imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
    return _with_transformers(portable, "transformers and PEFT alone", imports, load)


def _transformers(portable: Portable, file: str, has_base: bool) -> list[str]:
    if not portable.task.is_text:
        return []
    load = 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto").eval()'
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    return _with_transformers(portable, "transformers alone", imports, load)


def _with_transformers(portable: Portable, what: str, imports: str, load: str) -> list[str]:
    """Return a script that scores the examples of a file, or answers them, for language models."""
    form = portable.task.format
    chat, joiner = form is not None and (form.chat or form.messages is not None), " " if form is None else form.joiner
    special = ", add_special_tokens=False" if chat else ""
    if chat:
        prompt = (
            'tokenizer.apply_chat_template([{"role": "user", "content": one["prompt"]}], tokenize=False, '
            "add_generation_prompt=True)"
        )
    else:
        prompt = f'one["prompt"] + ("" if one["prompt"][-1:].isspace() else {joiner!r})'
    script = (_CHOICES if portable.task.no_choices is None else _FREE).format(
        imports=imports,
        load=load,
        prompt=prompt,
        special=special,
        most=64 if form is None else form.max_new_tokens,
        tokens=f'tokenizer(text, return_tensors="pt"{special}).input_ids',
    )
    asks = "prints the accuracy" if portable.task.no_choices is None else "prints the answers"
    return [
        f"With {what}: this script {asks} on a file of examples, which `fedcollm evaluate RUN_DIR --write-examples "
        "FILE.jsonl` writes.",
        _fenced(script),
    ]


def _gguf(portable: Portable, file: str, has_base: bool) -> list[str]:
    return [
        f"With llama.cpp: `llama-cli -m {file} -no-cnv --temp 0 -p 'PROMPT'`. With Ollama: `ollama create NAME -f "
        "Modelfile`. With llama-cpp-python:",
        _fenced(
            f'from llama_cpp import Llama\nmodel = Llama("{file}")\n'
            'print(model("PROMPT", temperature=0)["choices"][0]["text"])'
        ),
    ]


def _onnx(portable: Portable, file: str, has_base: bool) -> list[str]:
    if not portable.task.is_text:
        return [
            "With onnxruntime; the inputs are those that the model of transformers takes:",
            _fenced(f'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")\nsession.run(None, inputs)'),
        ]
    return [
        "With onnxruntime. `past_I_key` and `past_I_value` are the keys and values of earlier tokens in layer I, "
        "[batch, heads, 0, width] at first; the outputs `present_I_key` and `present_I_value` are the next call's.",
        _fenced(
            f'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")\n'
            'new = {"input_ids": ..., "attention_mask": ..., "position_ids": ...}\n'
            "logits, *present = session.run(None, new | past)"
        ),
    ]


#: The library that loads a model, to what returns the paragraphs on it.
_PARAGRAPHS: Mapping[str, Callable[[Portable, str, bool], list[str]]] = {
    "peft": _peft,
    "transformers": _transformers,
    "gguf": _gguf,
    "onnx": _onnx,
}
