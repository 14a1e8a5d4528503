"""Split a pool into public, private and test parts, and the private part among the clients.

Only the label, the group and the content of an example are read. The functions of `partitioners` see positions and
integer codes, never the examples.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedcollm.config import PartitionConfig, TaskConfig
from fedcollm.data.degenerate import degenerate_notes
from fedcollm.data.duplicates import without_duplicates
from fedcollm.data.partitioners import dirichlet_parts, even_parts, group_parts, linear_parts, shard_parts
from fedcollm.data.pool import Pool, Split
from fedcollm.data.sizes import check_sizes
from fedcollm.errors import UserError
from fedcollm.seeding import derive_seed

#: Free-text labels are treated as classes only if there are at most this many distinct ones.
MOST_CLASSES = 30


def check_classes(examples: Sequence[Any], where: str = "the training data") -> None:
    """Check that the examples have at least two distinct labels, since there is nothing to learn from a single one.

    Args:
        examples: the examples to check.
        where: where they come from, for the message.

    Raises:
        UserError: there are fewer than two distinct labels.
    """
    labels = {example.label for example in examples}
    if len(labels) < 2:
        names = ", ".join(map(repr, labels)) or "no label"
        raise UserError(
            f"{where}: all {len(examples)} examples have the answer {names}. Give examples with at least two answers."
        )


def split(pool: Pool, config: TaskConfig, seed: int, private: bool = True) -> Split:
    """Split a pool into disjoint test, public and private parts that depend only on the pool, the sizes and the seed.

    Only one of several examples with equal content is kept: the first one in the test set, or else in the training
    data, or else among the pool's own public examples, or else among its unlabelled ones.

    The public part comes from the pool's own public examples if it has any, or else from the front of the shuffled
    training data. Its unlabelled part comes from the pool's unlabelled examples if it has any, or else follows the
    labelled part, without its labels. The private part comes from the end of the shuffled training data. So neither
    part changes with the size of the other, and the private part does not depend on the kind of partition.

    Args:
        pool: the examples as their source delivers them.
        config: the sizes and the kind of partition.
        seed: the run's seed.
        private: False if the clients have their own data elsewhere, so that the pool need not contain any for them.

    Raises:
        UserError: there are not enough examples, or the partition is impossible.
    """
    if private and not pool.train and pool.public is not None:
        raise UserError(
            f"task {config.name}: there is no training data for the clients. Add a train file; only the server of a "
            "deployment needs none."
        )
    kept, removed, dropped = without_duplicates(pool)
    dropped = [*pool.notes, *dropped]
    test, train = list(kept.test or ()), list(kept.train)
    random.Random(derive_seed(seed, "split")).shuffle(train)
    clients = _most_clients(train, config) if private else 0
    check_sizes(kept, removed, config, clients)
    if pool.test is None:
        test, train, notes = train[: config.test_size], train[config.test_size :], dropped
    else:
        test, fewer = _sampled(test, config, seed)
        notes = dropped + fewer
    public, labelled = _public(kept, train, config, seed)
    if not private:
        return _noted(Split(public, {}, test, removed, notes))
    clients = _clients_with_groups(train, clients, config)
    parts = partition(train[-clients * config.private_size :], clients, config.partition, seed)
    if config.partition.kind == "natural":
        notes += [_groups_note(client, examples) for client, examples in parts.items()]
    if config.partition.with_public:
        parts["0"] = parts["0"] + labelled
    return _noted(Split(public, parts, test, removed, notes))


def _noted(parts: Split) -> Split:
    """Return a split with sentences on what makes it unfit to learn from or to score with, if anything does."""
    return replace(parts, notes=[*parts.notes, *degenerate_notes(parts)])


def _most_clients(train: Sequence[Any], config: TaskConfig) -> int:
    """Return `task.clients` or, where that is null, the number of groups of the training data."""
    return config.clients or len({example.group for example in train} - {None}) or 1


def _clients_with_groups(train: Sequence[Any], clients: int, config: TaskConfig) -> int:
    """Return the largest number of clients whose private examples are of at least as many groups.

    The private part may lack a small group that the training data has. With `task.clients` set, it is that number.
    """
    while config.clients is None and clients > 1:
        private = train[-clients * config.private_size :]
        if len({example.group for example in private} - {None}) >= clients:
            break
        clients -= 1
    return clients


def _public(pool: Pool, train: list[Any], config: TaskConfig, seed: int) -> tuple[list[Any], list[Any]]:
    """Return D_a, and its labelled part.

    Args:
        pool: the examples without duplicates.
        train: the shuffled training data without the test set, whose front is public if the pool has no public part.
        config: the sizes.
        seed: the run's seed.
    """
    public = train if pool.public is None else _shuffled(pool.public, seed, "public")
    labelled, rest = public[: config.public_size], public[config.public_size :]
    if pool.unlabelled is not None:
        rest = _shuffled(pool.unlabelled, seed, "unlabelled")
    return labelled + [example.without_label() for example in rest[: config.unlabelled_size]], labelled


def _shuffled(examples: Sequence[Any], seed: int, what: str) -> list[Any]:
    shuffled = list(examples)
    random.Random(derive_seed(seed, what)).shuffle(shuffled)
    return shuffled


def _sampled(test: list[Any], config: TaskConfig, seed: int) -> tuple[list[Any], list[str]]:
    """Return `test_size` examples of a given test set in their original order, and a note if it has fewer."""
    if not test:
        raise UserError(
            f"task {config.name}: the test set has no examples. Add some, or remove its file to have it cut from the "
            "training data."
        )
    if len(test) < config.test_size:
        note = f"the test set has {len(test)} examples, fewer than task.test_size {config.test_size}; all are used"
        return test, [note]
    chosen = random.Random(derive_seed(seed, "test")).sample(range(len(test)), config.test_size)
    return [test[i] for i in sorted(chosen)], []


def _groups_note(client: str, examples: Sequence[Any]) -> str:
    groups = sorted({example.group for example in examples})
    more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    return f"client {client} holds {', '.join(groups[:5])}{more}"


def partition(examples: Sequence[Any], clients: int, config: PartitionConfig, seed: int) -> dict[str, list[Any]]:
    """Divide examples among clients. Every example goes to exactly one client.

    - iid: clients of equal size.
    - dirichlet: each label is divided in proportions drawn from Dirichlet(α) (arXiv 1905.12022).
    - shards: the examples are sorted by label and cut into `clients * shards` blocks, of which each client gets
      `shards` at random (arXiv 1602.05629). The few examples left over are dealt out one by one.
    - natural: one client per group. If there are more groups than clients, whole groups are dealt out in turn, the
      largest first.
    - quantity: clients with sizes in the ratio 1 : 2 : ... : K.
    - pooled: client "0" has all examples.

    Args:
        examples: the private examples.
        clients: K, the number of clients.
        config: the kind of partition and its settings.
        seed: the run's seed.

    Returns:
        Client id ("0", "1", ...) to the client's examples.

    Raises:
        UserError: the partition is impossible, or would leave a client without examples.
    """
    if config.kind == "pooled":
        return {"0": list(examples)}
    if len(examples) < clients:
        raise UserError(
            f"{len(examples)} private examples are too few for {clients} clients. "
            "Lower task.clients, or raise task.private_size."
        )
    order = list(range(len(examples)))
    random.Random(derive_seed(seed, "partition")).shuffle(order)
    shuffled = [examples[i] for i in order]
    parts = _parts(shuffled, clients, config, derive_seed(seed, "partition"))
    for client, part in enumerate(parts):
        if not part:
            raise UserError(_failed(config, len(examples), clients, f"client {client} would have no examples"))
    return {str(client): [shuffled[i] for i in part] for client, part in enumerate(parts)}


def _parts(examples: Sequence[Any], clients: int, config: PartitionConfig, seed: int) -> list[list[int]]:
    """Return the positions in `examples` of each client's part."""
    if config.kind == "natural":
        return _deal(group_parts(_codes(examples, "group", clients, config)), clients)
    if config.kind in ("dirichlet", "shards"):
        codes = _codes(examples, "label", clients, config)
    else:
        codes = [0] * len(examples)
    makers = {
        "iid": lambda: even_parts(len(codes), clients),
        "quantity": lambda: linear_parts(len(codes), clients),
        "dirichlet": lambda: dirichlet_parts(codes, clients, config.alpha, seed),
        "shards": lambda: shard_parts(codes, clients, config.shards, seed),
    }
    try:
        parts = makers[config.kind]()
    except ValueError as error:
        raise UserError(_failed(config, len(examples), clients, str(error))) from None
    used = {i for part in parts for i in part}
    spare = sorted((i for i in range(len(examples)) if i not in used), key=lambda i: codes[i])
    for turn, i in enumerate(spare):  # only shards leave examples over
        parts[turn % clients].append(i)
    return parts


def _codes(examples: Sequence[Any], attribute: str, clients: int, config: PartitionConfig) -> list[int]:
    """Return each example's label or group as an integer; the integers follow the sorted names."""
    names = [getattr(example, attribute) for example in examples]
    missing = names.count(None)
    if missing:
        column = "task.format.group" if attribute == "group" else "the answers"
        raise UserError(
            f"task.partition.kind {config.kind}: {missing} of {len(names)} examples have no {attribute}. "
            f"Check {column}, or choose another kind, such as iid or quantity."
        )
    distinct = sorted(set(names))
    if attribute == "group" and len(distinct) < clients:
        raise UserError(
            f"task.partition.kind natural: the data has {len(distinct)} groups ({', '.join(distinct)}), "
            f"fewer than task.clients {clients}. Lower task.clients to {len(distinct)}, or choose another kind."
        )
    if config.kind == "dirichlet" and len(distinct) > max(MOST_CLASSES, len(names) / 2):
        raise UserError(
            f"task.partition.kind dirichlet: {len(distinct)} different answers in {len(names)} examples are too many "
            "to be classes. Choose another kind: iid, quantity or natural."
        )
    codes = {name: code for code, name in enumerate(distinct)}
    return [codes[name] for name in names]


def _deal(groups: list[list[int]], clients: int) -> list[list[int]]:
    """Deal whole groups to clients: one group each, by name, or in turn, the largest first, if there are more."""
    if len(groups) > clients:
        groups = sorted(groups, key=len, reverse=True)
    return [[i for group in groups[client::clients] for i in group] for client in range(clients)]


def _failed(config: PartitionConfig, examples: int, clients: int, reason: str) -> str:
    advice = {
        "dirichlet": f"raise task.partition.alpha ({config.alpha}) or task.private_size",
        "shards": f"lower task.partition.shards ({config.shards}) or raise task.private_size",
    }.get(config.kind, "raise task.private_size")
    return (
        f"task.partition.kind {config.kind} can't divide {examples} examples among {clients} clients: {reason}. "
        f"To fix this, {advice}, or lower task.clients."
    )


def describe(split: Split) -> dict[str, Any]:
    """Return a summary of a split as JSON values: label counts of the clients and the public part, and sizes.

    Free answers, such as transcripts, are private texts and no labels: only their number is given.
    """
    labelled = [example for example in split.public if example.label is not None]
    everyone = [example for part in split.private.values() for example in part] + labelled
    free = any(getattr(example, "has_free_label", False) for example in everyone)

    def counts(examples: Sequence[Any]) -> dict[str, int]:
        if free:
            return {"all": len(examples)}
        return dict(sorted(Counter(str(example.label) for example in examples).items()))

    return {
        "clients": {client: counts(examples) for client, examples in split.private.items()},
        "public": counts(labelled),
        "unlabelled": len(split.public) - len(labelled),
        "test": len(split.test),
        "duplicates_removed": split.duplicates_removed,
        "notes": list(split.notes),
    }
