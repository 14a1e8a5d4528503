"""Tiny speech models with random weights, in directories with all that a modality reads."""

import json
from pathlib import Path

import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]


def ctc_directory(place: Path, width: int = 16, letters=LETTERS, stride: int = 40, seed: int = 0) -> str:
    """A wav2vec2 with a frame of 20 ms (two convolutions of strides 8 and 40), which pads within batches by a mask."""
    torch.manual_seed(seed)
    shape = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=width,
        conv_dim=[8, 8], conv_kernel=[16, 40], conv_stride=[8, stride], num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer", pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(shape).save_pretrained(place)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(place)
    (place / "letters.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(place / "letters.json")).save_pretrained(place)
    return str(place)


def whisper_directory(place: Path, width: int = 16, words=("a", "b", "c"), seed: int = 0) -> str:
    """A Whisper of one layer for clips of up to 2 s, whose tokens are letters."""
    torch.manual_seed(seed)
    place.mkdir(parents=True, exist_ok=True)
    tokens = ["Ġ", *words, *(f"Ġ{word}" for word in words)]
    vocabulary = {token: i for i, token in enumerate([*tokens, *SPECIAL])}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=[("Ġ", word) for word in words],
        unk_token=SPECIAL[0],
        additional_special_tokens=SPECIAL,
    )
    end, start = vocabulary[SPECIAL[0]], vocabulary[SPECIAL[1]]
    shape = WhisperConfig(
        vocab_size=len(vocabulary), num_mel_bins=8, d_model=width, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=width, decoder_ffn_dim=width,
        max_source_positions=100, max_target_positions=20, decoder_start_token_id=start, bos_token_id=end,
        eos_token_id=end, pad_token_id=end, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    WhisperForConditionalGeneration(shape).save_pretrained(place)
    WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)
