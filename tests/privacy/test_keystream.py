"""The keystream is ChaCha20's, and every stream has a key of its own."""

import os

import numpy as np
import pytest

from fedcollm.privacy.keystream import SecureStream


def test_words_are_chacha20s_keystream():
    # RFC 8439, A.1, test vector 1: key, nonce and counter are zero
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    stream = SecureStream(bytes(32))
    assert stream.words(1).tobytes() + stream.words(3).tobytes() == expected


def test_two_streams_differ():
    assert not (SecureStream().words(100) == SecureStream().words(100)).any()


def test_uniform_numbers_lie_in_the_half_open_unit_interval_and_fill_it():
    values = SecureStream(bytes(32)).uniform(100_000)
    assert 0 <= values.min() < 1e-3
    assert 1 - 1e-3 < values.max() < 1
    assert (values * 2.0**53 == np.floor(values * 2.0**53)).all()
    assert np.histogram(values, 10, (0, 1))[0].std() < 300  # 95 by chance


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads, which the child does not use
def test_forked_process_has_numbers_of_its_own():
    stream = SecureStream()
    stream.words(1)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, stream.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    theirs = os.read(reader, 100)
    os.close(reader)
    assert len(theirs) == 32
    assert theirs != stream.words(4).tobytes()
