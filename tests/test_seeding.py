"""Seeds depend on identity and on nothing else."""

import random

import pytest
import torch

from fedcollm.seeding import RunIdentity, derive_seed


def test_seed_is_the_first_31_bits_of_the_digest():
    # `printf '0/server/1' | sha256sum` starts with 7e61458b, that is 2120304011; half of it, rounded down:
    assert derive_seed(0, "server", 1) == 1060152005


def test_seed_fits_31_bits():
    seeds = [derive_seed(seed, "client", seed) for seed in range(200)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 200


@pytest.mark.parametrize(
    "other", [(1, "client", "2", 5), (0, "server", "2", 5), (0, "client", "3", 5), (0, "client", "2", 6)]
)
def test_seed_depends_on_every_part_of_the_identity(other):
    assert derive_seed(0, "client", "2", 5) != derive_seed(*other)


def test_seed_does_not_depend_on_earlier_calls():
    first = derive_seed(0, "client", "2", 5)
    random.random(), torch.rand(1), derive_seed(0, "client", "1", 5)
    assert derive_seed(0, "client", "2", 5) == first


def test_identity_of_a_run_derives_from_its_seed():
    assert RunIdentity("icd10/0", 0).derive("server", 1) == 1060152005
