"""How many examples of which label each client gets, as positions: one function per kind of partition.

The functions see integer codes of labels or groups, never the examples. They draw the same random numbers in the same
order as the partitioners of flwr-datasets 0.6 and give the same parts. That package is no dependency because importing
it takes longer than everything else that happens before training: it imports its plots and statistics too.
"""

import itertools
from collections.abc import Sequence

import numpy

#: How often the proportions of a Dirichlet partition are drawn again if a client would get nothing.
ATTEMPTS = 11


def even_parts(size: int, clients: int) -> list[list[int]]:
    """Return consecutive parts, of which the first ones are larger by one if the size can't be divided evenly.

    >>> even_parts(5, 3)
    [[0, 1], [2, 3], [4]]
    """
    least, more = divmod(size, clients)
    return _consecutive([least + (client < more) for client in range(clients)])


def linear_parts(size: int, clients: int) -> list[list[int]]:
    """Return consecutive parts with sizes in the ratio 1 : 2 : ... : K, rounded down; the last one gets the rest.

    Raises:
        ValueError: a part would be empty.

    >>> linear_parts(7, 3)
    [[0], [1, 2], [3, 4, 5, 6]]
    """
    units = numpy.linspace(1, clients, clients)
    sizes: list[int] = (units / units.sum() * size).astype(numpy.int64).tolist()
    sizes[-1] += size - sum(sizes)
    if min(sizes) < 1:
        raise ValueError("the smallest client would have no examples")
    return _consecutive(sizes)


def group_parts(codes: Sequence[int]) -> list[list[int]]:
    """Return the positions of each code, in the order of the codes.

    >>> group_parts([2, 0, 2])
    [[1], [0, 2]]
    """
    return [[i for i, code in enumerate(codes) if code == group] for group in sorted(set(codes))]


def dirichlet_parts(codes: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Divide each code in proportions drawn from Dirichlet(α), and shuffle each part.

    The proportions are drawn again if a part is empty (Yurochkin et al., arXiv 1905.12022).

    Args:
        codes: the label of each example.
        clients: K, the number of parts.
        alpha: concentration α, the same for all parts.
        seed: seed of the proportions and of the order within each part.

    Raises:
        ValueError: a part is still empty after `ATTEMPTS` attempts.
    """
    generator, groups = numpy.random.default_rng(seed), group_parts(codes)
    for _ in range(ATTEMPTS):
        parts: list[list[int]] = [[] for _ in range(clients)]
        for positions in groups:
            ends = numpy.cumsum(generator.dirichlet(numpy.full(clients, alpha))) * len(positions)
            bounds = [0, *ends.astype(int).tolist()[:-1], len(positions)]
            for part, (start, end) in zip(parts, itertools.pairwise(bounds), strict=True):
                part.extend(positions[start:end])
        if all(parts):
            return _shuffled(parts, generator)
    raise ValueError(f"a client had no examples in each of {ATTEMPTS} attempts")


def shard_parts(codes: Sequence[int], clients: int, shards: int, seed: int) -> list[list[int]]:
    """Sort by code, cut into blocks of equal size, give each client that many at random, and shuffle each part.

    The positions that fill no block are in no part (McMahan et al., arXiv 1602.05629, section 3).

    Args:
        codes: the label of each example.
        clients: K, the number of parts.
        shards: number of blocks per part.
        seed: seed of the choice of blocks and of the order within each part.

    Raises:
        ValueError: there are fewer examples than blocks.
    """
    size = len(codes) // (clients * shards)
    if size == 0:
        raise ValueError(f"{clients} × {shards} shards are more than there are examples")
    generator = numpy.random.default_rng(seed)
    blocks: list[int] = generator.permutation(len(codes) // size).tolist()
    order = sorted(range(len(codes)), key=lambda i: codes[i])
    drawn = [blocks[client * shards : (client + 1) * shards] for client in range(clients)]
    places = [[place for block in part for place in range(block * size, (block + 1) * size)] for part in drawn]
    return [[order[place] for place in part] for part in _shuffled(places, generator)]


def _consecutive(sizes: Sequence[int]) -> list[list[int]]:
    bounds = [0, *itertools.accumulate(sizes)]
    return [list(range(start, end)) for start, end in itertools.pairwise(bounds)]


def _shuffled(parts: list[list[int]], generator: numpy.random.Generator) -> list[list[int]]:
    for part in parts:
        generator.shuffle(part)
    return parts
