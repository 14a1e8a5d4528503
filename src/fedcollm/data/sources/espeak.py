"""Speech by espeak-ng, whose shared library the package `espeakng-loader` ships (GPL-3.0, data included).

The library keeps state between utterances, such as that of its noise. It therefore speaks in a process of its own, so
that the same utterances give the same samples: this file is that process's program too, and needs only the standard
library.
"""

import ctypes
import itertools
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Values of espeak-ng's speak_lib.h.
_RETRIEVAL, _NEVER_EXIT, _UTF8, _RATE, _PITCH = 2, 0x8000, 1, 1, 3


@dataclass(frozen=True)
class Utterance:
    """One thing to say.

    Attributes:
        text: what to say.
        voice: a voice of espeak-ng, with a variant after a plus sign if there is one, such as `en-us+f2`.
        speed: words per minute, from 80 to 450.
        pitch: from 0 to 99; 50 is normal.
    """

    text: str
    voice: str
    speed: int = 175
    pitch: int = 50


def speak(utterances: Sequence[Utterance]) -> tuple[int, list[bytes]]:
    """Return the sampling rate in Hz, and 16-bit mono samples of each utterance, in the machine's byte order.

    Raises:
        UserError: the package `espeakng-loader` is not installed, or its library can't speak.
    """
    from fedcollm.errors import UserError
    from fedcollm.modalities.audio.recordings import audio_package

    loader = audio_package("espeakng_loader")
    plan = {
        "library": str(loader.get_library_path()),
        "data": str(loader.get_data_path()),
        "utterances": [asdict(utterance) for utterance in utterances],
    }
    done = subprocess.run([sys.executable, "-I", __file__], input=json.dumps(plan).encode(), capture_output=True)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"espeak-ng can't speak: {last}. Reinstall the package espeakng-loader.")
    head = f"={len(utterances) + 1}I"
    rate, *sizes = struct.unpack_from(head, done.stdout)
    ends = list(itertools.accumulate(sizes, initial=struct.calcsize(head)))
    return rate, [done.stdout[start:end] for start, end in itertools.pairwise(ends)]


def _main() -> None:
    """Read a plan as JSON from standard input; write the rate, sizes in bytes and samples to standard output."""
    plan: dict[str, Any] = json.load(sys.stdin.buffer)
    library, blocks = ctypes.CDLL(plan["library"]), list[bytes]()
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def keep(samples: Any, count: int, events: object) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate: int = library.espeak_Initialize(_RETRIEVAL, 0, plan["data"].encode(), _NEVER_EXIT)
    if rate <= 0:
        raise SystemExit(f"its data at {plan['data']} can't be read")
    callback = kind(keep)
    library.espeak_SetSynthCallback(callback)
    spoken = [_say(library, utterance, blocks) for utterance in plan["utterances"]]
    head = struct.pack(f"={len(spoken) + 1}I", rate, *map(len, spoken))
    sys.stdout.buffer.write(head + b"".join(spoken))


def _say(library: Any, utterance: dict[str, Any], blocks: list[bytes]) -> bytes:
    blocks.clear()
    if library.espeak_SetVoiceByName(utterance["voice"].encode()):
        raise SystemExit(f"it has no voice {utterance['voice']!r}")
    library.espeak_SetParameter(_RATE, utterance["speed"], 0)
    library.espeak_SetParameter(_PITCH, utterance["pitch"], 0)
    text: bytes = utterance["text"].encode()
    if library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None):
        raise SystemExit(f"it can't say {utterance['text']!r}")
    library.espeak_Synchronize()
    return b"".join(blocks)


if __name__ == "__main__":
    _main()
