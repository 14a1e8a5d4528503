"""The keystream is ChaCha20's, and every stream has a key of its own."""

import numpy as np

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
