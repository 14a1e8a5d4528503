"""GGUF files as llama.cpp computes them, by the package llama-cpp-python."""

from collections.abc import Sequence
from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.exports.runtime import TokenRuntime
from fedcollm.exports.source import DEVICE, Source
from fedcollm.modalities.base import Modality
from fedcollm.models.pretrained import transformers_class
from fedcollm.progress import say
from fedcollm.runs.predictor import Predictor

#: Longest sequence that a file is compared on, in tokens: llama.cpp reserves memory for it.
_MOST_TOKENS = 4096

#: Texts that a tokenizer may split in its own way: digits, accents, emoji, other scripts, white space, code.
SAMPLES = (
    "The year 2024 had 366 days; 1234567 and 3.14159, 12%.",
    " leading,  two spaces\tand a tab\n\n  indented",
    "café naïve Łódź Straße",
    "cafe\u0301",
    "😀👍🏽 🇩🇪",
    "日本語のテキスト 中文，测试。한국어",
    "العربية हिन्दी ไทย русский",
    "def f(x):\n    return x**2  # if (a==b){c+=1;}",
    "don't I'm WE'RE “quotes” – dash",
)


class LlamaCpp(TokenRuntime):
    """A language model in a GGUF file, computed by llama.cpp.

    Args:
        file: the file.
        context: longest sequence, in tokens.
    """

    def __init__(self, file: Path, context: int):
        super().__init__()
        library: Any = import_module("llama_cpp")
        self._model: Any = library.Llama(
            str(file), n_ctx=context, n_batch=min(context, 512), n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(), logits_all=True, verbose=False,
        )  # fmt: skip

    def extend(self, known: int, tokens: Sequence[int]) -> Tensor:
        """Return [len(tokens), V] logits of tokens that follow the first `known` ones of the sequence before."""
        self._model.n_tokens = known  # `eval` forgets what follows these
        self._model.eval(list(tokens))
        return torch.tensor(self._model.scores[known : known + len(tokens)])

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that begin every text."""
        return self._model.tokenize(text.encode(), add_bos=False, special=True)


def split_otherwise(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> int | None:
    """Return how many texts llama.cpp turns into other tokens than the source's tokenizer; None for another runtime.

    The samples that it does so with are said on the screen: some rules, such as composing accents before a text is
    split, have no place in a GGUF file.
    """
    if not isinstance(model, LlamaCpp):
        return None
    others = [text for text in (*SAMPLES, *texts) if model.tokens(text) != _tokens(tokenizer, text)]
    if said := [text for text in others if text in SAMPLES]:
        say(f"llama.cpp splits texts such as {said[0]!r} into other tokens than the tokenizer in training did")
    return len(others) - len(said)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def load_gguf(source: Source, file: Path) -> tuple[Modality, nn.Module]:
    """Return the modality and the model in a GGUF file, computed by llama.cpp, or by transformers without it.

    transformers computes with the file's own weights, after they are unpacked to float32. So it tells what quantization
    costs, but not what llama.cpp does.
    """
    modality: Any = Predictor.load(source.directory, DEVICE).modality
    if util.find_spec("llama_cpp") is not None:
        return modality, LlamaCpp(file, min(modality.context_length + 1, _MOST_TOKENS))
    say("llama-cpp-python is not installed, so the file is read by transformers: pip install 'fedcollm[export]'")
    auto_class = transformers_class("AutoModelForCausalLM")
    network: Any = auto_class.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    return modality, network.eval()
