"""Parts as positions, worked by hand, and the random ones as flwr-datasets 0.6.1 draws them."""

import pytest

from fedcollm.data.partitioners import dirichlet_parts, even_parts, group_parts, linear_parts, shard_parts

CODES = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0]


def test_even_parts_differ_by_one():
    assert even_parts(7, 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert even_parts(1, 2) == [[0], []]


def test_linear_parts_are_rounded_down_and_the_last_gets_the_rest():
    assert linear_parts(8, 3) == [[0], [1, 2], [3, 4, 5, 6, 7]]  # 8/6, 16/6, 24/6 = 1.3, 2.7, 4, and one left
    with pytest.raises(ValueError, match="no examples"):
        linear_parts(5, 3)  # 5/6 of an example


def test_groups_follow_their_codes():
    assert group_parts([7, 3, 7, 5]) == [[1], [3], [0, 2]]


def test_dirichlet_draws_as_flwr_datasets_does():
    assert dirichlet_parts(CODES, 3, 0.5, seed=0) == [[2, 0], [1], [9, 5, 11, 10, 8, 7, 4, 6, 3]]


def test_dirichlet_gives_up_if_a_client_gets_nothing():
    with pytest.raises(ValueError, match="11 attempts"):
        dirichlet_parts([0, 0], 3, 1.0, seed=0)


def test_shards_are_drawn_as_flwr_datasets_does():
    assert shard_parts(CODES, 2, 2, seed=0) == [[6, 0, 10, 3, 7, 4], [8, 1, 5, 2, 11, 9]]
    assert shard_parts(CODES, 5, 1, seed=3) == [[11, 1], [8, 5], [10, 2], [9, 6], [7, 4]]  # 0 and 3 are left


def test_more_shards_than_examples():
    with pytest.raises(ValueError, match="7 × 2 shards"):
        shard_parts(CODES, 7, 2, seed=0)
