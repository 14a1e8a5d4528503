"""Files of WAV and OGG whose end is missing, whatever else their headers say."""

import struct

import pytest
from tests.modalities.audio.test_recordings import encoded, tone

from fedcollm.modalities.audio.containers import is_cut_short

STREAMED = (b"\0\0\0\0", b"\xff\xff\xff\xff")


def wav(*chunks: tuple[bytes, bytes], riff: bytes = b"RIFF", size: int | None = None) -> bytes:
    """A WAV file of chunks, with the size that its header claims."""
    order = ">I" if riff == b"RIFX" else "<I"
    body = b"".join(name + struct.pack(order, len(part)) + part + b"\0" * (len(part) % 2) for name, part in chunks)
    return riff + struct.pack(order, len(body) + 4 if size is None else size) + b"WAVE" + body


@pytest.mark.parametrize("riff", [b"RIFF", b"RIFX"])
@pytest.mark.parametrize("size", [None, 0, 2**32 - 1, 20])
def test_chunk_of_samples_tells_whatever_the_header_says(riff, size):
    whole = wav((b"fmt ", b"\0" * 16), (b"note", b"odd"), (b"data", b"\1" * 8), riff=riff, size=size)
    assert not is_cut_short(whole)
    assert is_cut_short(whole[:-1])
    assert is_cut_short(whole[:-8])


@pytest.mark.parametrize("sizes", STREAMED)
def test_streamed_sizes_say_nothing(sizes):
    data = bytearray(encoded(tone()))
    assert data[36:40] == b"data"
    data[4:8] = data[40:44] = sizes
    assert not is_cut_short(bytes(data[:5_000]))


def test_chunk_after_the_samples_may_be_missing_only_if_the_header_says_so():
    whole = wav((b"fmt ", b"\0" * 16), (b"data", b"\1" * 8), (b"LIST", b"abcd"))
    assert not is_cut_short(whole)
    assert is_cut_short(whole[:-2])
    assert not is_cut_short(b"RIFF\xff\xff\xff\xff" + whole[8:-2])


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "OGG"])
@pytest.mark.parametrize("share", [1, 0.99, 0.5, 0.1])
def test_encoded_files_are_whole_or_cut(kind, share):
    data = encoded(tone(), kind=kind, subtype=None)
    assert is_cut_short(data[: int(share * len(data))]) == (share < 1)


def test_streamed_rf64_and_other_files_are_not_judged():
    whole = wav((b"ds64", b"\0" * 28), (b"data", b"\1" * 8), riff=b"RF64", size=2**32 - 1)
    assert not is_cut_short(whole.replace(b"data\x08\0\0\0", b"data\xff\xff\xff\xff"))
    assert not is_cut_short(b"")
    assert not is_cut_short(b"RIFF")
    assert not is_cut_short(b"fLaC" + bytes(100))
