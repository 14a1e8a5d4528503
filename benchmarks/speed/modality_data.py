"""Images, recordings and transcripts of B6, and a tokenizer: noise, the same in every process."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
_WORDS = ("yes", "no", "left", "right", "stop", "go", "up", "down")

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")


def whisper_tokenizer() -> Any:
    """A tokenizer whose tokens are letters."""
    from transformers import WhisperTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["Ġ", *letters, *(f"Ġ{letter}" for letter in letters), *SPECIAL]
    return WhisperTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[("Ġ", letter) for letter in letters],
        unk_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL),
    )


def prepare_images(place: Path, kind: str, side: int) -> None:
    """Say how the model's images are prepared: scaled to a square, and from 0...255 to -1...1."""
    half = [0.5] * 3
    settings = {
        "image_processor_type": kind, "do_resize": True, "size": {"height": side, "width": side}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": half, "image_std": half,
    }  # fmt: skip
    (place / "preprocessor_config.json").write_text(json.dumps(settings))


def pngs(count: int, side: int) -> Iterator[bytes]:
    """Images of noise of twice the side that the model reads, as PNG files."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((2 * side, 2 * side)).save(file, "PNG")
        yield file.getvalue()


def recordings(case: dict) -> Iterator[Any]:
    """Clips of noise, from half of the case's `seconds` to all of them, as FLAC files."""
    import soundfile

    from fedcollm.modalities.audio.recordings import Recording

    generator = np.random.default_rng(0)
    for number in range(case["examples"]):
        samples = round(RATE * case["seconds"] * (0.5 + 0.5 * (number % 5) / 4))
        file = io.BytesIO()
        soundfile.write(file, 0.1 * generator.standard_normal(samples), RATE, format="FLAC")
        yield Recording(file.getvalue(), f"clip {number}")


def spoken(case: dict) -> list[Any]:
    """Clips with transcripts of about two words a second."""
    from fedcollm.modalities.audio.transcripts import SpeechExample

    words = math.ceil(case["seconds"])
    said = [" ".join(_WORDS[(number + i) % len(_WORDS)] for i in range(words)) for number in range(case["examples"])]
    return [
        SpeechExample(str(number), recording, text)
        for number, (recording, text) in enumerate(zip(recordings(case), said, strict=True))
    ]
