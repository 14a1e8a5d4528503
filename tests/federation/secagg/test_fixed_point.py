"""Fixed-point vectors by hand on adapters of a few numbers; what does not fit is an error, never wrapped."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcollm.federation.secagg.fixed_point import FixedPoint, RangeError

POINT = FixedPoint(clients=4, max_weight=512, value_range=1.0)  # 19 fraction bits: 1.0 is 524288
SIZES = [  # K, W, R, and f by hand
    (4, 512, 1.0, 19),  # (2²⁹ - 1) / 2⁹ is just below 2²⁰
    (1, 1, 1.0, 30),  # 2³¹ - 1
    (2, 1, 1.0, 29),  # 2³⁰ - 1
    (3, 1, 1.0, 29),  # 715 827 881, and 2²⁹ is 536 870 912
    (4, 1, 0.25, 30),  # 4 (2²⁹ - 1)
    (10, 4096, 1.0, 15),  # 52 428, and 2¹⁵ is 32 768
    (100, 4096, 1.0, 12),  # 5 242, and 2¹² is 4 096
    (7, 1000, 0.3, 19),  # 1 022 611, and 2²⁰ is 1 048 576
    (65535, 64, 2.0, 7),  # 255.99
]


def encoded(values: list[float], weight: int = 1, point: FixedPoint = POINT, dtype=torch.float64) -> list[int]:
    return point.encode({"w": torch.tensor(values, dtype=dtype)}, weight, {}).tolist()


def decoded(total, length: int, point: FixedPoint = POINT) -> list[float]:
    adapter, sums = point.decode(np.array(total, np.uint32), {"w": (length,)}, [])
    assert sums == {}
    return adapter["w"].tolist()


def limbs(value: float) -> list[int]:
    return POINT.encode({}, 1, {"loss": value}).tolist()


# --- fraction bits ---


@pytest.mark.parametrize(("clients", "weight", "value_range", "bits"), SIZES)
def test_fraction_bits_by_hand(clients, weight, value_range, bits):
    assert FixedPoint(clients, weight, value_range).fraction_bits == bits


@given(st.integers(1, 65535), st.integers(1, 10**5), st.floats(1e-3, 1e3))
def test_fraction_bits_are_the_most_that_cannot_overflow(clients, weight, value_range):
    bits = FixedPoint(clients, weight, value_range).fraction_bits
    largest = weight * Fraction(value_range) * Fraction(2) ** bits
    assert clients * (largest + Fraction(1, 2)) < 2**31  # rounding adds at most one half
    assert clients * (2 * largest + 1) > 2**31


# --- tensors ---


def test_values_are_multiples_of_two_to_the_minus_f():
    assert encoded([1.0, 0.5, 0.0, 2.0**-19]) == [524288, 262144, 0, 1]


def test_negative_values_count_down_from_two_to_the_32():
    assert encoded([-1.0, -(2.0**-19)]) == [2**32 - 524288, 2**32 - 1]


def test_weight_multiplies():
    assert encoded([1.0, -0.5], weight=3) == [1572864, 2**32 - 786432]
    assert encoded([1.0, -0.5], weight=0) == [0, 0]


def test_weight_multiplies_before_the_value_is_rounded():
    # 512 · 0.1 · 2¹⁹ = 26 843 545.6; 0.1 · 2¹⁹ = 52 428.8 would give 512 · 52 429 = 26 843 648
    assert encoded([0.1], weight=512) == [26843546]


def test_values_are_rounded_to_the_nearest_and_halves_to_even():
    unit = 2.0**-19
    assert encoded([0.4 * unit, 0.6 * unit, 0.5 * unit, 1.5 * unit, -0.6 * unit]) == [0, 1, 0, 2, 2**32 - 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_dtype_is_encoded(dtype):
    assert encoded([0.5, -1.0], weight=2, dtype=dtype) == [524288, 2**32 - 1048576]


def test_vector_holds_statistics_and_then_tensors_in_the_order_of_their_names():
    # both dictionaries in an order that is not the names': only the statistics keep theirs
    delta = {"b": torch.tensor([[0.5, 0.25], [0.0, -0.5]]), "a": torch.tensor(1.0)}
    vector = POINT.encode(delta, 1, {"seconds": 1.0, "loss": 2.0})
    assert vector.dtype == np.uint32
    assert vector.tolist() == [0, 16, 0, 0, 0, 32, 0, 0, 524288, 262144, 131072, 0, 2**32 - 262144]
    assert POINT.words({"b": (2, 2), "a": ()}, statistics=2) == len(vector) == 13


def test_vector_decodes_to_names_shapes_and_values():
    delta = {"b": torch.tensor([[0.5, 0.25], [0.0, -0.5]]), "a": torch.tensor(1.0)}
    vector = POINT.encode(delta, 3, {"seconds": 1.5, "loss": 2.0})
    adapter, sums = POINT.decode(vector, {"b": (2, 2), "a": ()}, ["seconds", "loss"])
    assert {name: tensor.tolist() for name, tensor in adapter.items()} == {"b": [[1.5, 0.75], [0.0, -1.5]], "a": 3.0}
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float64}
    assert sums == {"seconds": 1.5, "loss": 2.0}


def test_neither_side_changes_what_it_was_given():
    delta, total = {"w": torch.tensor([0.5, -1.0])}, np.array([524288, 2**32 - 1], np.uint32)
    POINT.encode(delta, 7, {})
    POINT.decode(total, {"w": (2,)}, [])
    assert delta["w"].tolist() == [0.5, -1.0]
    assert total.tolist() == [524288, 2**32 - 1]


def test_sum_over_clients_by_hand():
    # 2 · 0.5 - 3 · 1 = -2, and 2 · 1 + 3 · 0.25 = 2.75
    total = np.array(encoded([0.5, 1.0], 2), np.uint32) + np.array(encoded([-1.0, 0.25], 3), np.uint32)
    assert decoded(total, 2) == [-2.0, 2.75]


# --- sums at the edge ---


@pytest.mark.parametrize(("clients", "weight", "value_range", "_bits"), SIZES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sum_of_extreme_vectors_does_not_wrap(clients, weight, value_range, _bits, sign):
    point = FixedPoint(clients, weight, value_range)
    vector = np.array(encoded([sign * value_range], weight, point), np.uint32)
    (total,) = decoded(vector * np.uint32(clients), 1, point)
    assert abs(total - sign * clients * weight * value_range) <= clients * 2.0 ** -(point.fraction_bits + 1)


@st.composite
def federations(draw) -> tuple[FixedPoint, list[tuple[int, list[float]]]]:
    """A fixed point, and the weights and values of at most K clients."""
    value_range = draw(st.floats(2.0**-6, 64.0, width=32))
    point = FixedPoint(draw(st.integers(1, 12)), draw(st.integers(1, 4096)), value_range)
    value = st.floats(-value_range, value_range, width=32)
    client = st.tuples(st.integers(0, point.max_weight), st.lists(value, min_size=3, max_size=3))
    return point, draw(st.lists(client, min_size=1, max_size=point.clients))


@settings(deadline=None)
@given(federations())
def test_sum_of_encodings_is_the_weighted_sum_but_for_rounding(federation):
    point, members = federation
    total = np.zeros(3, np.uint32)
    for weight, values in members:
        total += np.array(encoded(values, weight, point, torch.float32), np.uint32)
    error = len(members) * Fraction(1, 2) / Fraction(2) ** point.fraction_bits
    for i, found in enumerate(decoded(total, 3, point)):
        exact = sum((weight * Fraction(values[i]) for weight, values in members), Fraction())
        assert abs(Fraction(found) - exact) <= error


@pytest.mark.parametrize("uniform", [False, True], ids=["by examples", "uniform"])
def test_rounding_error_of_a_realistic_mean_is_below_a_millionth(uniform):
    generator = torch.Generator().manual_seed(1)
    weights = [1] * 10 if uniform else [300, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4096]
    point = FixedPoint(10, 1 if uniform else 4096, 1.0)
    deltas = [torch.randn(5000, generator=generator).mul(1e-2).clamp(-1, 1) for _ in weights]
    exact = sum(weight * delta.double() for weight, delta in zip(weights, deltas, strict=True)) / sum(weights)
    total = np.zeros(5000, np.uint32)
    for weight, delta in zip(weights, deltas, strict=True):
        total += point.encode({"w": delta}, weight, {})
    mean = point.decode(total, {"w": (5000,)}, [])[0]["w"] / sum(weights)
    assert 0 < float((mean - exact).abs().max()) < 1e-6


# --- statistics ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, [0, 0, 0, 0]),
        (2.0**-20, [1, 0, 0, 0]),
        (1.0, [0, 16, 0, 0]),  # 2²⁰ = 16 · 2¹⁶
        (65536.5, [0, 8, 16, 0]),  # 2³⁶ + 2¹⁹
        (4096 - 2.0**-20, [0xFFFF, 0xFFFF, 0, 0]),  # 2³² - 1
        (2.0**39, [0, 0, 0, 2048]),  # 2⁵⁹ = 2¹¹ · 2⁴⁸
        (2.0**40 - 2.0**-13, [0xFF80, 0xFFFF, 0xFFFF, 0x0FFF]),  # 2⁶⁰ - 2⁷, the largest double that is allowed
        (0.1, [0x999A, 1, 0, 0]),  # 104 857.6, rounded: 2¹⁶ + 39 322
    ],
)
def test_limbs_by_hand(value, expected):
    assert limbs(value) == expected


@pytest.mark.parametrize("value", [2.0**-20, 1.0, 123456.75, 4096 - 2.0**-20, 2.0**40 - 2.0**-13])
def test_sums_of_limbs_over_many_clients_are_exact(value):
    point = FixedPoint(65535, 1, 1.0)
    total = point.encode({}, 1, {"loss": value}) * np.uint32(65535)
    assert point.decode(total, {}, ["loss"])[1] == {"loss": float(65535 * Fraction(value))}


def test_statistics_of_different_clients_are_summed_each_by_itself():
    one = POINT.encode({}, 1, {"loss": 0.75, "examples": 3.0})
    two = POINT.encode({}, 1, {"loss": 4095.5, "examples": 70000.0})
    assert POINT.decode(one + two, {}, ["loss", "examples"])[1] == {"loss": 4096.25, "examples": 70003.0}


# --- what does not fit ---


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("value_range", "bits"), [(1.0, 19), (0.5, 20), (0.1, 23), (3.0, 18)])
def test_value_at_the_edge_of_the_range_is_allowed(value_range, bits, sign):
    # R = 0.1: 2²⁹ / 51.2 is 10 485 760, between 2²³ and 2²⁴; R = 3: 349 525, between 2¹⁸ and 2¹⁹
    point = FixedPoint(4, 512, value_range)
    assert point.fraction_bits == bits
    assert encoded([sign * value_range], 1, point) == [sign * round(value_range * 2**bits) % 2**32]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, "1.5"),
        (-1.5, "1.5"),
        (math.nextafter(1.0, 2.0), "1"),
        (math.nextafter(-1.0, -2.0), "1"),
        (1e30, "1e.30"),
        (math.inf, "inf"),
        (-math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_value_outside_the_range_names_the_tensor_and_the_value(value, shown):
    delta = {"a": torch.tensor([1.0]), "w": torch.tensor([0.5, value, 0.25], dtype=torch.float64)}
    with pytest.raises(RangeError, match=rf"^w changed by {shown}, outside .*±1\..*value_range"):
        POINT.encode(delta, 1, {})


@pytest.mark.parametrize("weight", [513, 10**9, -1])
def test_weight_outside_the_range_names_the_weight_and_the_bound(weight):
    with pytest.raises(RangeError, match=f"^{weight} examples, more than the 512 .*max_weight"):
        encoded([0.0], weight)


def test_largest_weight_is_allowed():
    assert encoded([1.0], 512) == [2**28]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-1.0, "-1"), (-(2.0**-30), "-9.31323e-10"), (2.0**40, "1.09951e.12"), (math.inf, "inf"), (math.nan, "nan")],
)
def test_statistic_outside_the_range_names_the_statistic_and_the_value(value, shown):
    with pytest.raises(RangeError, match=f"^loss is {shown}, and can be summed"):
        POINT.encode({}, 1, {"examples": 1.0, "loss": value})


def test_sum_of_a_hostile_client_decodes_to_numbers_that_can_be_refused():
    point = FixedPoint(clients=3, max_weight=1, value_range=0.5, bits=8)
    total = np.full(point.words({"w": [5]}, 1), 2**32 - 1, np.uint32)
    changes, sums = point.decode(total, {"w": [5]}, ["clients"])
    assert sums["clients"] > 3
    assert changes["w"].shape == (5,)
