import io

import numpy as np
import soundfile
import torch

from fedcollm.modalities.audio.recordings import Reader, Recording
from fedcollm.modalities.audio.spectrogram import heard_exhibit, spectrogram
from fedcollm.modalities.audio.transcripts import SpeechExample


def _tone(hertz: float) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / 16_000)


def _brightest_row(hertz: float) -> int:
    return int(np.asarray(spectrogram(_tone(hertz), 16_000)).sum(axis=(1, 2)).argmax())


def test_frequency_goes_upwards_in_mel():
    # mel: log(1 + f / 700); 8000 Hz is row 0 and 0 Hz row 119, so 1000 Hz is 119 (1 - .8873 / 2.5199) = 77.1
    assert abs(_brightest_row(1000) - 77) <= 1
    # 4000 Hz: 119 (1 - 1.9042 / 2.5199) = 29.1
    assert abs(_brightest_row(4000) - 29) <= 1


def test_time_goes_to_the_right():
    columns = np.asarray(spectrogram(torch.cat([torch.zeros(8_000), _tone(1000)[:8_000]]), 16_000)).sum(axis=(0, 2))
    assert columns[:100].max() < columns[140:].min()


def test_silence_and_short_clips_have_a_picture():
    assert spectrogram(torch.zeros(16_000), 16_000).size == (240, 120)
    assert spectrogram(_tone(1000)[:160], 16_000).size == (240, 120)


def test_exhibit_says_what_it_is():
    file = io.BytesIO()
    soundfile.write(file, _tone(440).numpy(), 16_000, format="WAV")
    exhibit = heard_exhibit(SpeechExample("a", Recording(file.getvalue()), "hello"), Reader())
    assert (exhibit.id, exhibit.truth, exhibit.size) == ("a", "hello", (240, 120))
    assert exhibit.text == "Spectrogram, 1.0 s, 0 to 8 kHz"
