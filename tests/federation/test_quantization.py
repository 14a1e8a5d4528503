"""Changes of an adapter as small integers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcollm.federation.aggregation.validation import Expected, validate_updates
from fedcollm.federation.quantization import (
    SCALES,
    VALUES,
    from_words,
    quantized,
    quantized_form,
    randomly_rounded,
    restored,
    to_words,
)
from fedcollm.federation.secagg.fixed_point import STATISTICS, FixedPoint, RangeError
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import ClientUpdate, TrainRequest, adapter_bytes, misshapen

THETA = {"b": torch.tensor([[1.0, 1.0, 1.0]]), "a": torch.tensor([0.0, 0.0])}
TUNED = {"b": torch.tensor([[1.7, 0.3, 1.15]]), "a": torch.tensor([0.0, 0.0])}


@given(st.integers(2, 2**16), st.lists(st.integers(0, 2**16 - 1), max_size=20))
def test_words_hold_what_was_put_in(base, values):
    kept = np.array([value % base for value in values], np.int64)
    assert from_words(to_words(kept, base), base, len(kept)).tolist() == kept.tolist()


def test_words_by_hand():
    assert to_words(np.array([1, 2, 0, 2]), 3).tolist() == [1 + 2 * 3 + 2 * 27]
    largest = to_words(np.full(21, 2), 3)  # 20 digits to a word
    assert largest.tolist() == [3**20 - 1, 2]
    assert from_words(largest, 3, 21).tolist() == [2] * 21


def test_sums_of_words_are_the_words_of_sums():
    one, other = np.array([1, 2, 3, 4, 5, 4, 3, 0, 4, 4, 1]), np.array([7, 6, 5, 4, 3, 4, 1, 8, 4, 4, 2])
    total = to_words(one, 9) + to_words(other, 9)  # 10 digits to a word
    assert total.tolist() == [9**10 - 1 - 4 * 9**6, 3]
    assert from_words(total, 9, 11).tolist() == [8, 8, 8, 8, 8, 8, 4, 8, 8, 8, 3]


def test_random_rounding_is_right_on_average():
    values = torch.full((40_000,), 0.25, dtype=torch.float64)
    rounded = randomly_rounded(values, 1).double()
    assert set(rounded.tolist()) == {0.0, 1.0}
    assert float(rounded.mean()) == pytest.approx(0.25, abs=0.01)  # five standard deviations
    assert torch.equal(randomly_rounded(-values, 1).unique(), torch.tensor([-1, 0]))


@pytest.mark.parametrize(("bits", "words"), [(8, 2), (4, 1), (3, 1)])
def test_change_travels_in_few_bits_and_comes_back_within_a_step(bits, words):
    upload = quantized(TUNED, THETA, bits, seed=3)
    most = {8: 127, 4: 5, 3: 3}[bits]
    assert upload[VALUES].shape == (words,)
    assert torch.allclose(upload[SCALES], torch.tensor([0.0, 0.7 / most]))  # in the order of the names
    assert misshapen(upload, quantized_form(THETA, bits)) is None
    back = restored(upload, THETA, bits)
    assert torch.equal(back["a"], THETA["a"])
    assert float((back["b"] - TUNED["b"]).abs().max()) < 0.7 / most
    assert torch.allclose(back["b"][0, :2], TUNED["b"][0, :2])  # the largest changes are exact
    assert adapter_bytes(upload) == 4 * words + 2 * 4


def test_server_rounds_to_the_nearest_with_the_scale_of_the_least_error():
    theta, moved = {"w": torch.zeros(4)}, {"w": torch.tensor([3.0, 0.9, -2.1, 0.4])}
    sent = quantized(moved, theta, 3, seed=None)  # 7 values: steps of 1 leave 0.01 + 0.01 + 0.16
    assert sent[SCALES].tolist() == [1.0]
    assert restored(sent, theta, 3)["w"].tolist() == [3.0, 1.0, -2.0, 0.0]
    outlier = {"w": torch.tensor([1.0] + [0.3] * 30)}  # steps of 1/3 leave 30 · 0.033²; steps of 0.3 only 0.1²
    sent = quantized(outlier, {"w": torch.zeros(31)}, 3, seed=None)
    assert sent[SCALES].tolist() == [pytest.approx(1 / 3)]
    few = {"w": torch.tensor([1.0] + [0.1] * 30)}  # steps of 1/3 leave 30 · 0.1²; steps of 0.1 cut 1 to 0.3
    assert quantized(few, {"w": torch.zeros(31)}, 3, seed=None)[SCALES].tolist() == [pytest.approx(1 / 3)]
    many = {"w": torch.tensor([1.0] + [0.1] * 300)}  # 300 · 0.1² is more than 0.7²
    assert quantized(many, {"w": torch.zeros(301)}, 3, seed=None)[SCALES].tolist() == [pytest.approx(0.1)]
    assert quantized(theta, theta, 3, seed=None)[SCALES].tolist() == [0.0]


def test_same_round_is_rounded_to_the_same_bytes():
    one, again, other = (quantized(TUNED, THETA, 3, seed)[VALUES] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    changes = {tuple(restored(quantized(TUNED, THETA, 3, s), THETA, 3)["b"].flatten().tolist()) for s in range(20)}
    assert len(changes) > 1
    assert other.shape == one.shape


@pytest.mark.parametrize(
    ("values", "scales", "reason"),
    [
        (torch.zeros(2, dtype=torch.int32), torch.tensor([0.0, 0.1]), None),
        (torch.zeros(2, dtype=torch.int32), torch.tensor([0.0, torch.nan]), "not finite"),
        (torch.zeros(2, dtype=torch.int32), torch.tensor([0.0, 1e30]), "max_update_norm"),
        (torch.zeros(3, dtype=torch.int32), torch.tensor([0.0, 0.1]), "not ["),
        (torch.zeros(2), torch.tensor([0.0, 0.1]), "not ["),
    ],
)
def test_server_takes_only_what_honest_clients_send(values, scales, reason):
    request, lost = TrainRequest(1, THETA), dict[str, str]()
    expected = Expected(request, ["k"], 1000.0, uploads={"k": UploadFormat(bits=8)})
    update = ClientUpdate("k", 1, {VALUES: values, SCALES: scales}, 4, 0.5)
    found = list(validate_updates([update], expected, lost))
    if reason is None:
        assert found[0].adapter.keys() == THETA.keys()
    else:
        assert (found, reason in lost["k"]) == ([], True)


@pytest.mark.parametrize("bits", [16, 8, 5, 4])
def test_sums_of_few_bits_are_exact_up_to_rounding(bits):
    encoding = FixedPoint(clients=3, max_weight=8, value_range=0.5, bits=bits)
    deltas = [{"w": torch.tensor([0.5, -0.5, 0.25 * k, 0.0, 0.1])} for k in range(3)]
    names, weights = ("clients", "examples"), (8, 4, 1)
    vectors = [
        encoding.encode(delta, weight, {"clients": 1.0, "examples": float(weight)}, seed)
        for seed, (delta, weight) in enumerate(zip(deltas, weights, strict=True))
    ]
    shapes = {"w": (5,)}
    assert {len(vector) for vector in vectors} == {encoding.words(shapes, 2)}
    assert encoding.words(shapes, 2) == 8 + {16: 3, 8: 2, 5: 1, 4: 1}[bits]
    for present in (vectors, vectors[:2]):  # one client may be lost
        total = np.sum(present, axis=0, dtype=np.uint32)
        sums, statistics = encoding.decode(total, shapes, names)
        exact = sum(
            weight * delta["w"].double() for delta, weight in zip(deltas, weights[: len(present)], strict=False)
        )
        assert statistics == {"clients": len(present), "examples": sum(weights[: len(present)])}
        assert float((sums["w"] - exact).abs().max()) < len(present) / encoding.scale
    assert sums["w"][0] == pytest.approx(0.5 * (8 + 4), abs=1 / encoding.scale)


def test_largest_changes_of_all_clients_do_not_reach_the_next_value():
    encoding = FixedPoint(clients=4, max_weight=1, value_range=1.0, bits=8)
    ones = {"w": torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])}
    total = np.sum([encoding.encode(ones, 1, {"clients": 1.0}, k) for k in range(4)], axis=0, dtype=np.uint32)
    assert encoding.decode(total, {"w": (5,)}, ["clients"])[0]["w"].tolist() == [4.0, -4.0, 4.0, -4.0, 4.0]


@pytest.mark.parametrize(
    ("clients", "bits", "most", "values"),
    [
        (4, 8, 31, 4),
        (4, 6, 10, 5),
        (4, 5, 4, 6),
        (4, 4, 1, 10),
        (4, 3, 1, 10),
        (3, 4, 2, 8),
        (10, 4, 0, 32),
        (3, 16, 10922, 2),
    ],
)
def test_base_is_no_larger_than_the_largest_sum(clients, bits, most, values):
    encoding = FixedPoint(clients, 1, 1.0, bits)
    assert encoding.most == most
    assert encoding.words({"w": (values,)}, 0) == 1
    assert most == 0 or encoding.words({"w": (values + 1,)}, 0) == 2


def test_change_outside_the_range_of_few_bits_is_clipped_and_counted():
    encoding = FixedPoint(clients=3, max_weight=8, value_range=0.5, bits=8)
    theta, tuned = {"w": torch.zeros(4)}, {"w": torch.tensor([0.5, -0.9, 0.6, 2.0])}
    whole = encoding.encode_update(ClientUpdate("k", 1, tuned, 8, 0.5), theta, uniform=False)
    sums, statistics = encoding.decode(whole, {"w": (4,)}, STATISTICS)
    assert sums["w"].tolist() == [4.0, -4.0, 4.0, 4.0]
    assert statistics["clipped"] == 3
    half = encoding.encode_update(ClientUpdate("k", 1, tuned, 4, 0.5), theta, uniform=False)  # 4 · 0.9 is below 8 · 0.5
    sums, statistics = encoding.decode(half, {"w": (4,)}, STATISTICS)
    assert statistics["clipped"] == 1
    assert sums["w"].tolist() == pytest.approx([2.0, -3.6, 2.4, 4.0], abs=4 / 42)
    with pytest.raises(RangeError, match="nan"):
        encoding.encode({"w": torch.tensor([torch.nan])}, 1, {})
