"""espeak-ng: the same utterances give the same samples."""

import numpy as np
import pytest

from fedcollm.data.sources.espeak import Utterance, speak
from fedcollm.errors import UserError

SAID = [Utterance("seven", "en-us+f1"), Utterance("seven", "en-us+f1", speed=300), Utterance("seven", "en-029")]


def test_utterances_are_spoken_in_order_and_alike_each_time():
    rate, spoken = speak(SAID)
    assert rate == 22_050
    assert (rate, spoken) == speak(SAID)
    assert len(spoken[1]) < len(spoken[0])
    assert spoken[0] != spoken[2]
    for samples in spoken:
        assert 0.2 < len(samples) / 2 / rate < 2
        assert np.abs(np.frombuffer(samples, np.int16)).max() > 3_000


def test_unknown_voice_is_named():
    with pytest.raises(UserError, match="no voice 'xx-yy'"):
        speak([Utterance("seven", "xx-yy")])
