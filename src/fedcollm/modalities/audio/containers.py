"""The containers of audio that are read, and whether the bytes of one end before its header says.

soundfile reads a WAV or OGG file whose end is missing without a word.
"""

#: The formats that are read, as libsndfile calls them. WAVEX and RF64 are kinds of WAV: with more than two channels or
#: 16 bits, and of more than 4 GiB.
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")

_STREAMED = (0, 2**32 - 1)  # sizes of a WAV file that was written before its length was known


def is_cut_short(data: bytes) -> bool:
    """Return whether a WAV file is shorter than its header says, or an OGG file's last page is not whole or not marked.

    A page of OGG (RFC 3533) has its flags in byte 5 (4: the last one), the number of its segments in byte 26, then
    their lengths.
    """
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _is_short_wav(data)
    if data[:4] == b"OggS":
        page = data[data.rfind(b"OggS") :]
        if len(page) < 27 or not page[5] & 4:
            return True
        lengths = page[27 : 27 + page[26]]
        return len(page) < 27 + page[26] + sum(lengths)
    return False


def _is_short_wav(data: bytes) -> bool:
    """Return whether the whole file or its samples, in the chunk `data`, would be longer than the bytes.

    A chunk has a name and a size, of 4 bytes each, and an even number of bytes. In an RF64 file (EBU Tech 3306), the
    chunk `ds64` has the real sizes of the file and of the samples, of 8 bytes each.
    """
    order = "big" if data[:4] == b"RIFX" else "little"
    whole = int.from_bytes(data[4:8], order)
    if whole not in _STREAMED and whole + 8 > len(data):
        return True
    start, long = 12, 0
    while start + 8 <= len(data):
        name, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], order)
        if name == b"ds64":
            long = int.from_bytes(data[start + 16 : start + 24], order)
        if name == b"data":
            samples = long if data[:4] == b"RF64" and size == 2**32 - 1 else size
            return samples not in (*_STREAMED, 2**64 - 1) and start + 8 + samples > len(data)
        start += 8 + size + size % 2
    return False
