"""The rows: which clients are bad, and how."""

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.robustness import data_attacks, update_attacks
from benchmarks.robustness.data_attacks import DataAttack
from benchmarks.robustness.update_attacks import Seen, UpdateAttack
from fedcollm.federation.client import Client
from fedcollm.modalities.text.examples import TextExample
from fedcollm.seeding import derive_seed


@dataclass(frozen=True)
class Row:
    """A federation with some bad clients, the last ones.

    Attributes:
        label: what is wrong, for a plot.
        clients: number of clients.
        bad: number of bad ones.
        data: what is done to the examples of a bad client.
        update: what a bad client sends in the place of its update.
        share: the share of wrong labels, for rows that make one line.
        line: the name of that line; empty for rows of their own.
    """

    label: str
    clients: int
    bad: int = 0
    data: DataAttack | None = None
    update: UpdateAttack | None = None
    share: float = 0.0
    line: str = ""

    @property
    def clean(self) -> str:
        """The name of the row without bad clients."""
        return f"clean-{self.clients}"

    def private(self, seed: int) -> Callable[[str, list[TextExample]], list[TextExample]]:
        """What changes the private examples of each client, if it is called for one after the other in their order.

        Args:
            seed: seed of the run, on which the bad data depends.
        """
        positions = itertools.count()

        def made(client: str, examples: list[TextExample]) -> list[TextExample]:
            if next(positions) < self.clients - self.bad or self.data is None:
                return examples
            return self.data(examples, random.Random(derive_seed(seed, "bad data", client)))

        return made

    def stand_in(self) -> Callable[[Client], Client] | None:
        """What takes the place of each client, if it is called for one after the other; None: nothing does."""
        attack, seen, positions = self.update, Seen(self.bad), itertools.count()
        if attack is None:
            return None

        def made(client: Client) -> Client:
            honest = next(positions) < self.clients - self.bad
            return update_attacks.watched(client, seen) if honest else update_attacks.hostile(client, seen, attack)

        return made


#: Name to number of clients and of bad ones among them.
COHORTS: Mapping[str, tuple[int, int]] = {"1of4": (4, 1), "2of4": (4, 2), "3of10": (10, 3)}

SHARES = (0.2, 0.4, 0.6)

#: Kind of wrong labels to label and function.
LABELS: Mapping[str, tuple[str, Callable[[float], DataAttack]]] = {
    "random": ("random wrong labels", data_attacks.random_labels),
    "pairwise": ("labels mixed up in pairs", data_attacks.pairwise_labels),
    "confused": ("labels by a confused annotator", data_attacks.confused_labels),
    "removed": ("wrong labels, all found and left out", data_attacks.removed),
}

DATA: Mapping[str, tuple[str, DataAttack]] = {
    "garbled": ("garbled text", data_attacks.garbled),
    "duplicates": ("80 % duplicates", data_attacks.duplicates),
    "one-class": ("one class only", data_attacks.one_class),
    "few": ("10 examples only", data_attacks.few),
    "language": ("another language", data_attacks.other_language),
    "backdoor": ("backdoor", data_attacks.backdoor),
}

UPDATES: Mapping[str, tuple[str, UpdateAttack]] = {
    "sign-flip": ("sign flip", update_attacks.sign_flip),
    "times-1000": ("update × 1000", update_attacks.times_1000),
    "noise": ("Gaussian noise", update_attacks.noise),
    "alie": ("A Little Is Enough", update_attacks.alie),
    "inner-product": ("inner-product manipulation", update_attacks.inner_product),
}


def _rows() -> dict[str, Row]:
    rows = {f"clean-{count}": Row("no bad client", count) for count in sorted({c for c, _ in COHORTS.values()})}
    for cohort, (count, bad) in COHORTS.items():
        who = f"{bad} of {count} clients"
        for kind, (label, make) in LABELS.items():
            for share in SHARES:
                row = Row(f"{label}, {who}", count, bad, make(share), share=share, line=f"labels-{kind}-{cohort}")
                rows[f"labels-{kind}-{100 * share:.0f}-{cohort}"] = row
        rows |= {f"{k}-{cohort}": Row(f"{label}, {who}", count, bad, data) for k, (label, data) in DATA.items()}
        rows |= {f"{k}-{cohort}": Row(f"{label}, {who}", count, bad, None, up) for k, (label, up) in UPDATES.items()}
    return rows


#: All rows by name.
ROWS: Mapping[str, Row] = _rows()
