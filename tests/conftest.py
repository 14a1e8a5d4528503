"""Tiny random models and data, made in the test: no downloads, milliseconds a step.

No outcome depends on how busy the machine is: a test waits for an event (`wait_for`), never for a time.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FEDCOLLM_STATE"] = tempfile.mkdtemp(prefix="fedcollm-state-")  # the list of joined runs

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.models.fused.attention import register

register()  # for models that a test builds without `load_causal_lm`

WORDS = [
    "<pad>",
    "<unk>",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "bird",
    "is",
    "a",
    "the",
    ":",
    "colour",
    "animal",
    "good",
    "bad",
]

#: The paper's whole data sets, where somebody has put them. A test that needs them has a small twin that does not.
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the paper's data sets are not in ../shared/data")

#: How long a test waits for an event that a fault may keep from happening.
PATIENCE_SECONDS = 600.0

# The same examples on every machine, however long one takes.
hypothesis.settings.register_profile(
    "fedcollm",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fedcollm")


def wait_for(event: Callable[[], object]) -> None:
    """Return once the event has happened.

    Raises:
        TimeoutError: it did not happen within `PATIENCE_SECONDS`.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not event():
        if time.monotonic() > end:
            raise TimeoutError(f"{event} did not happen within {PATIENCE_SECONDS:g} s")
        time.sleep(0.05)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of these tests."""
    parser.addoption("--update-snapshots", action="store_true", help="write what is said now to tests/snapshots")


@pytest.fixture
def interruptible_children() -> Iterator[None]:
    """Child processes stop at SIGINT, even if this one ignores it, as everything does that `nohup ... &` started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Whatever a run chose, the next test starts with exact float32 products."""
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over WORDS."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


#: Another vocabulary of the same words in another order: a piece brings its space along, and two words are cut in two.
PIECES = [
    "<pad>",
    "<s>",
    *(f"▁{word}" for word in WORDS[:1:-1] if len(word) < 6),
    "▁col",
    "our",
    "▁ani",
    "mal",
    "<unk>",
]


@pytest.fixture(scope="session")
def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer over PIECES, as sentencepiece makes them, that puts <s> before every text."""
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=len(PIECES) - 1))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>")


def tiny_llama(layers: int = 2, hidden: int = 16, seed: int = 0, size: int = len(WORDS)) -> LlamaForCausalLM:
    """A random Llama with 16 tokens and a context of 32."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(shape).eval()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """A fresh tiny Llama."""
    return tiny_llama()


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """A tiny LLM and a tiny SLM with one tokenizer, as directories."""
    root = tmp_path_factory.mktemp("models")
    for role, layers, hidden in (("llm", 4, 32), ("slm", 2, 16)):
        tiny_llama(layers, hidden, seed=layers).save_pretrained(root / role)
        tokenizer.save_pretrained(root / role)
    return {role: str(root / role) for role in ("llm", "slm")}


COLOURS, ANIMALS = ("red", "green", "blue"), ("cat", "dog", "bird")


@pytest.fixture(scope="session")
def word_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """288 distinct rows: is this word a colour or an animal? With the group that a row belongs to."""
    path = tmp_path_factory.mktemp("data") / "words.jsonl"
    fillers = ("the", "a", "is", ":", "good", "bad")
    texts = [f"{x} {y} {z}" for x in fillers for y in fillers for z in fillers[:4]]
    rows = [
        {"text": f"{filler} {word}", "kind": "colour" if word in COLOURS else "animal", "site": str(i % 3)}
        for i, filler in enumerate(texts)
        for word in ((*COLOURS, *ANIMALS)[i % 6], (*COLOURS, *ANIMALS)[(i + 3) % 6])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def healing_text(tmp_path: Path) -> Path:
    """A file with 216 distinct texts of three words."""
    path, words = tmp_path / "text.txt", WORDS[2:8]
    path.write_text("\n".join(f"{a} {b} {c}" for a in words for b in words for c in words), encoding="utf-8")
    return path


def word_task(word_data: Path, public_size: int, test_size: int) -> dict[str, Any]:
    """The section `task` of two clients with 40 words each."""
    return {
        "name": "custom",
        "path": str(word_data),
        "format": {"prompt": "{text} is a", "answer": "kind", "choices": ["colour", "animal"], "group": "site"},
        "clients": 2,
        "partition": {"kind": "iid"},
        "private_size": 40,
        "public_size": public_size,
        "unlabelled_size": 0,
        "test_size": test_size,
    }


@pytest.fixture
def tiny_config(model_directories: dict[str, str], word_data: Path) -> RunConfig:
    """Two rounds of two clients on the tiny models: under a second."""
    return load_config(
        "icd10",
        name="tiny",
        task=word_task(word_data, public_size=96, test_size=48),
        llm={"source": model_directories["llm"]},
        slm={"source": model_directories["slm"], "layers": None, "heal": None},
        client={"learning_rate": 1e-2, "max_grad_norm": None},
        server={"learning_rate": 1e-2, "max_grad_norm": None, "unlabelled_per_round": None},
        federation={"rounds": 2},
        evaluation={"clients": "every"},
    )


@pytest.fixture
def pair_config(
    tiny_config: RunConfig, pieces: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> RunConfig:
    """As `tiny_config`, with an LLM that has another tokenizer."""
    place = tmp_path_factory.mktemp("other")
    tiny_llama(4, 32, seed=4, size=24).save_pretrained(place)  # some columns have no token, as in padded embeddings
    pieces.save_pretrained(place)
    distillation = {"server.distillation.across_tokenizers": True}
    return changed(tiny_config, {"llm.source": str(place), "task.unlabelled_size": 16} | distillation)
