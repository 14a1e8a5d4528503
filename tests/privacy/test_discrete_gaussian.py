"""Samples follow the discrete Gaussian, against its exact probabilities; the keys are fixed, so no test is flaky."""

import math

import numpy as np
import pytest
from scipy import stats

from fedcollm.privacy import discrete_gaussian as module
from fedcollm.privacy.discrete_gaussian import discrete_gaussian
from fedcollm.privacy.keystream import SecureStream

KEY = bytes(range(32))


def probabilities(sigma: float) -> dict[int, float]:
    """P(y) for |y| ≤ 12 σ + 2; what is left is below 1e-30."""
    weights = {y: math.exp(-(y**2) / (2 * sigma**2)) for y in range(-int(12 * sigma) - 2, int(12 * sigma) + 3)}
    total = math.fsum(weights.values())
    return {y: weight / total for y, weight in weights.items()}


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.75, 1.0, 1.5, 2.2, 3.0, 5.7, 12.0])
def test_small_deviations_fit_the_exact_probabilities(sigma):
    samples = discrete_gaussian(sigma**2, 400_000, SecureStream(KEY))
    exact = probabilities(sigma)
    common = [y for y, p in exact.items() if p * len(samples) >= 10]
    observed = [int((samples == y).sum()) for y in common]
    expected = [exact[y] * len(samples) for y in common]
    rest = len(samples) - sum(observed), len(samples) - sum(expected)
    if rest[1] >= 5:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    else:
        expected = [value * sum(observed) / sum(expected) for value in expected]
    assert stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0, 1000.0, 1e8, 1e12])
def test_mean_and_variance(sigma):
    samples = discrete_gaussian(sigma**2, 1_000_000, SecureStream(KEY)) / sigma
    variance = math.fsum(p * y**2 for y, p in probabilities(sigma).items()) / sigma**2 if sigma < 100 else 1.0
    assert abs(samples.mean()) < 4 * math.sqrt(variance) / 1000
    assert samples.var() == pytest.approx(variance, rel=4 * math.sqrt(2) / 1000)


@pytest.mark.parametrize("sigma", [1000.0, 1448.0, 1e8])
def test_large_deviations_fit_the_normal_distribution(sigma):
    samples = (discrete_gaussian(sigma**2, 400_000, SecureStream(KEY)) + 0.5) / sigma
    assert stats.kstest(samples, "norm").pvalue > 0.001
    assert abs(stats.kurtosis(samples)) < 4 * math.sqrt(24 / 400_000)


@pytest.mark.parametrize("count", [0, 1, 7, 300_001])
def test_as_many_samples_as_asked_for(count):
    samples = discrete_gaussian(4.0, count, SecureStream(KEY))
    assert samples.shape == (count,)
    assert samples.dtype == np.int64


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, 4.0**45])
def test_variance_outside_the_range_is_refused(variance):
    with pytest.raises(ValueError, match="discrete Gaussian of variance"):
        discrete_gaussian(variance, 1, SecureStream(KEY))


def test_samples_of_two_streams_differ():
    one, other = (discrete_gaussian(1e6, 1000, SecureStream()) for _ in range(2))
    assert (one == other).mean() < 0.05


# --- the exact comparison ---


def decide(drawn: int, steps: int, size: int, variance: float = 1.0) -> bool:
    return module._below(drawn, steps, size, variance, module._log_height(variance, 0), SecureStream(KEY))


def test_comparison_agrees_with_the_floating_point_one_where_that_is_clear():
    height = module._log_height(1.0, 0)
    for steps in range(4):
        limit = math.exp(steps * math.log(2) - height - steps**2 / 2)
        assert decide(int(limit * 2**53 * 0.999), steps, steps)
        assert not decide(int(limit * 2**53 * 1.001), steps, steps)


def test_more_bits_decide_what_53_leave_open(monkeypatch):
    # the random number lies in [drawn, drawn + 1) 2⁻⁵³ together with the limit: the next word decides
    limit = math.exp(-module._log_height(1.0, 0))
    inside = int(limit * 2**53)
    words = {True: 0, False: 2**64 - 1}
    for expected, word in words.items():
        stream = SecureStream(KEY)
        monkeypatch.setattr(stream, "words", lambda count, w=word: np.array([w], np.uint64))
        assert module._below(inside, 0, 0, 1.0, module._log_height(1.0, 0), stream) is expected


def test_probabilities_too_small_for_floating_point_are_compared_too():
    assert not decide(2**30, 40, 40)  # exp(−772)
    assert not decide(0, 60, 60)  # exp(−1758): takes 2500 more bits to tell, or one word above zero


def test_exact_and_fast_comparison_give_the_same_samples(monkeypatch):
    fast = discrete_gaussian(9.0, 3000, SecureStream(KEY))
    monkeypatch.setattr(module, "_SLACK", 1.0)  # nothing is clear without the exact comparison
    assert (discrete_gaussian(9.0, 3000, SecureStream(KEY)) == fast).all()
