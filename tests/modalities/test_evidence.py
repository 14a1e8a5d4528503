"""Rows and targets by hand."""

import pytest
import torch
from torch import nn

from fedcollm.errors import UserError
from fedcollm.modalities.evidence import (
    Evidence,
    checked,
    head_inputs,
    normalized,
    places,
    with_choices,
    with_labels,
)


def test_examples_that_share_labels_have_a_target_a_label():
    evidence = with_labels(torch.ones(3, 1), ["a", "b"], [1, 0, None])
    assert evidence.targets.tolist() == [[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]
    assert (evidence.counts, evidence.labels, evidence.size) == ((1, 1, 1), ("a", "b"), (1, 2))


def test_examples_with_choices_of_their_own_have_a_row_a_choice():
    evidence = with_choices(torch.eye(5), [2, 3], [1, None])
    assert evidence.targets.tolist() == [[-1.0], [1.0], [0.0], [0.0], [0.0]]
    assert (evidence.counts, evidence.labels, evidence.size) == ((2, 3), (), (5, 1))


def test_values_are_given_back_by_example():
    shared = with_labels(torch.ones(2, 1), ["a", "b"], [0, 1])
    assert [v.tolist() for v in shared.by_example(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))] == [[1.0, 2.0], [3.0, 4.0]]
    own = with_choices(torch.eye(3), [1, 2], [0, 0])
    assert [v.tolist() for v in own.by_example(torch.tensor([[1.0], [2.0], [3.0]]))] == [[1.0], [2.0, 3.0]]


def test_place_of_a_choice_is_a_column():
    rows = places([2, 3])
    assert rows.shape == (5, 26)
    assert rows.argmax(dim=1).tolist() == [0, 1, 0, 1, 2]
    assert rows.sum().item() == 5
    with pytest.raises(UserError, match="27 choices"):
        places([27])


def test_rows_are_divided_by_their_norm():
    rows = normalized(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3), (1, 2, 3), (2, 3, 1, 1)])
def test_what_a_head_reads_is_seen_and_nothing_stays_hooked(shape):
    head, x = nn.Identity(), torch.arange(6.0).reshape(shape)
    assert head_inputs(head, lambda: head(x)).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert not head._forward_pre_hooks


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (Evidence(torch.ones(2, 1), torch.ones(2, 1), (1, 1)), "counts of 2 examples for 1"),
        (Evidence(torch.ones(2, 1), torch.ones(1, 1), (1,)), r"rows \[2, 1\]"),
        (Evidence(torch.ones(1, 1), torch.ones(1, 1), (1,), ("a", "b")), r"targets \[1, 1\]"),
        (Evidence(torch.full((1, 4), 0.6), torch.ones(1, 1), (1,)), "an L2 norm of 1.2"),
        (Evidence(torch.full((1, 1), float("nan")), torch.ones(1, 1), (1,)), "an L2 norm of nan"),
        (Evidence(torch.ones(1, 1), torch.full((1, 1), -50.0), (1,)), "a target of magnitude 50"),
        (Evidence(torch.ones(1, 1), torch.full((1, 1), float("nan")), (1,)), "a target of magnitude nan"),
    ],
)
def test_rows_that_do_not_fit_are_the_users_error(evidence, message):
    with pytest.raises(UserError, match=message):
        checked(evidence, ["an example"], object())


def test_rows_that_fit_are_returned():
    evidence = with_choices(torch.eye(2), [2], [0])
    assert checked(evidence, ["an example"], object()) is evidence
