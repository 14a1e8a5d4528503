"""A finished run of tiny models whose tokenizer llama.cpp knows: byte-level pairs, as in SmolLM."""

import json

import pytest
from tests.conftest import ANIMALS, COLOURS, WORDS, tiny_llama, word_task
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import fedcollm
from fedcollm.config.baselines import changed


def byte_pairs(steps=None):
    """A tokenizer of byte-level pairs with 320 tokens, the first three special."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = steps or pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([f" {a} {b} 12" for a in (*WORDS, *COLOURS) for b in (*ANIMALS, *WORDS)], trainer)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|im_end|>", **names)


def sentence_pieces(gemma=False):
    """A tokenizer of sentencepiece's kind with 384 tokens, 256 of them bytes: as in Llama 2, or as in Gemma."""
    blank = normalizers.Replace(" ", "\u2581")
    steps = pre_tokenizers.Split(" ", "merged_with_previous") if gemma else None
    normalizer = blank if gemma else normalizers.Sequence([normalizers.Prepend("\u2581"), blank])
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=128, special_tokens=special, show_progress=False)
    trained.train_from_iterator([f"{a} {b} 12" for a in (*WORDS, *COLOURS) for b in (*ANIMALS, *WORDS)], trainer)
    parts = json.loads(trained.to_str())["model"]
    names = [*special, *(f"<0x{i:02X}>" for i in range(256)), *(n for n in parts["vocab"] if n not in special)]
    merges = [tuple(pair) for pair in parts["merges"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer, inner.pre_tokenizer = normalizer, steps
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


@pytest.fixture(scope="session")
def pairs():
    return byte_pairs()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, word_data, pairs):
    """The directory of a run of one round, of an LLM and of the first and the last of its layers."""
    from fedcollm.config.loading import load_config

    root = tmp_path_factory.mktemp("exported")
    tiny_llama(3, 32, seed=1, size=len(pairs)).save_pretrained(root / "model")
    pairs.save_pretrained(root / "model")
    config = load_config(
        "icd10",
        name="tiny",
        task=word_task(word_data, public_size=32, test_size=40),
        llm={"source": str(root / "model"), "dtype": "float32"},
        slm={"source": str(root / "model"), "layers": [0, 2], "heal": None, "dtype": "float32"},
        client={"learning_rate": 3e-2, "max_grad_norm": None},
        server={"learning_rate": 1e-2, "max_grad_norm": None, "unlabelled_per_round": None},
        federation={"rounds": 1},
    )
    fedcollm.run(changed(config, {}), root / "run")
    return root / "run"
