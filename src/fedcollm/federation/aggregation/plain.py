"""Aggregation of plain updates, which the server sees one by one (Algorithm 1, server side)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from fedcollm.config import FederationConfig
from fedcollm.config.choices import AGGREGATIONS
from fedcollm.errors import RoundFailedError
from fedcollm.federation import held_out
from fedcollm.federation.aggregation.base import NO_UPDATE, Aggregate, Ask, Rule, Start
from fedcollm.federation.aggregation.clipping import bounded
from fedcollm.federation.aggregation.mean import ComponentMean, WeightedMean
from fedcollm.federation.aggregation.observations import Observer
from fedcollm.federation.aggregation.robust import RobustRule
from fedcollm.federation.aggregation.rules import RULES
from fedcollm.federation.aggregation.validation import Expected, in_order, validate_updates, with_client_failures
from fedcollm.federation.statistics import asked_for
from fedcollm.federation.upload_format import WHOLE, UploadFormat
from fedcollm.messages import Adapter, ClientUpdate, TrainRequest, adapter_bytes, readable


@dataclass(frozen=True)
class PlainAggregator:
    """Combines plain updates with the rule that `federation.aggregation` names.

    Attributes:
        settings: the rule, the smallest number of clients, and the limits of a valid update.
        uploads: the upload format of each client, by id; a client without an entry sends the whole adapter.
        reference: returns θ after the server's own training for a request, for a rule that compares updates with it.
    """

    settings: FederationConfig = field(default_factory=FederationConfig)
    uploads: Mapping[str, UploadFormat] = field(default_factory=dict[str, UploadFormat])
    reference: Callable[[TrainRequest], Adapter] | None = field(default=None, repr=False)

    #: Whether numbers of single updates may be looked at and recorded.
    looks: ClassVar[bool] = True

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask clients to train, and return the mean of their updates; see `Aggregator`."""
        private, lost, notes = self.settings.privacy is not None, dict[str, str](), list[str]()
        expected = Expected(request, clients, self.settings.max_update_norm, private, self.uploads)
        updates = in_order(validate_updates(ask(dict.fromkeys(clients, request)), expected, lost), clients)
        observer = Observer(request.adapter, self.uploads)
        if not asked_for(request):
            theta, seen = request.adapter, observer.watch(updates) if self.looks else updates
            updates = bounded(seen, lambda one: expected.form(one.client).part(theta), self.settings, notes)
        with with_client_failures(lost):
            mean = self.combine(self._enough(updates, len(clients), request.round_index), request)
        down, notes = adapter_bytes(request.adapter), (*notes, *mean.notes)
        up = self.bytes_up(request.adapter, clients)
        return replace(mean, lost=lost, bytes_up=up, bytes_down=down, notes=notes, observed=observer.seen())

    def combine(self, updates: Iterable[ClientUpdate], request: TrainRequest) -> Aggregate:
        """Return the mean of valid updates.

        Args:
            updates: the updates in a fixed order.
            request: the request that the clients answer.

        Raises:
            RoundFailedError: there are no updates.
        """
        return combine(updates, self._rule(request), _WEIGHTS.get(self.settings.aggregation, equally))

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int:
        """Return the size of the update of one of these clients in bytes, on average."""
        forms = (self.uploads.get(client, WHOLE).expected(theta) for client in clients)
        return sum(map(adapter_bytes, forms)) // max(len(clients), 1)

    def _enough(self, updates: Iterable[ClientUpdate], asked: int, round_index: int) -> Iterator[ClientUpdate]:
        """Yield updates, and then check their number, before a rule that needs more of them computes anything."""
        count = 0
        for update in updates:
            count += 1
            yield update
        if count:  # a round without any fails by itself
            self._check_number(count, asked, round_index)

    def _check_number(self, count: int, asked: int, round_index: int) -> None:
        """Check that there are as many updates as were agreed on, and as the rule needs.

        Raises:
            RoundFailedError: there are fewer.
        """
        settings, least = self.settings, self.settings.least_updates
        if count >= max(settings.min_clients, least):
            return
        why = ""
        if least > settings.min_clients:
            why = f" for federation.aggregation {settings.aggregation} to bear federation.faulty {settings.faulty}"
        raise RoundFailedError(
            f"round {round_index}: {count} of {asked} clients gave an update, and {max(settings.min_clients, least)} "
            f"are needed{why}. The last good state is kept: bring the clients back and run again with --resume."
        )

    def _rule(self, request: TrainRequest) -> Rule:
        """Return the rule of the settings; if clients have different ranks, a mean becomes a mean per component."""
        reference = self.reference(request) if self.reference is not None else None
        rule = RULES[self.settings.aggregation](Start(request.adapter, self.settings.faulty, reference))
        if isinstance(rule, WeightedMean) and any(upload.rank is not None for upload in self.uploads.values()):
            return ComponentMean(request.adapter)
        return rule


def by_examples(update: ClientUpdate) -> float:
    """Return a client's number of examples n_k, its weight in FedAvg (McMahan et al., arXiv 1602.05629)."""
    return float(update.examples or 0)


def equally(update: ClientUpdate) -> float:
    """Return 1, so that each of K clients counts 1/K, as in the paper's Algorithm 1."""
    return 1.0


#: The rules that weigh clients, with the function that does; all others weigh them equally or by themselves.
_WEIGHTS: Mapping[str, Callable[[ClientUpdate], float]] = {
    **{name: by_examples for name, choice in AGGREGATIONS.items() if choice.weighted},
    "held_out": held_out.weight,
}


def combine(
    updates: Iterable[ClientUpdate], rule: Rule, weigh: Callable[[ClientUpdate], float] = by_examples
) -> Aggregate:
    """Combine updates, one after the other.

    Args:
        updates: the updates in a fixed order.
        rule: a new rule, to which nothing was added yet.
        weigh: returns the weight of an update, relative to the others. Updates without a number of examples need equal
            weights.

    Raises:
        RoundFailedError: there are no updates.
    """
    examples = loss = 0.0
    scores: list[float] = []
    seconds: dict[str, float] = {}
    participants: list[str] = []
    for update in updates:
        rule.add(update.adapter, weigh(update))
        examples += update.examples or 0
        loss += (update.loss or 0.0) * (update.examples or 0)
        scores += [update.score.value] if update.score and not held_out.only_held_out(update.score) else []
        seconds = {part: seconds.get(part, 0.0) + value for part, value in update.seconds.items()}
        participants.append(update.client)
    if not participants:
        raise RoundFailedError(NO_UPDATE)
    return Aggregate(
        rule.value(),
        loss=loss / examples if examples else None,
        clients_score=sum(scores) / len(scores) if scores else None,
        seconds=seconds,
        participants=tuple(participants),
        examples=round(examples) or None,
        notes=_left_out(rule, participants),
    )


def _left_out(rule: Rule, participants: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence about the clients to which a rule gave no weight; none if it has weighed all or none."""
    weights = rule.weights if isinstance(rule, RobustRule) else None
    zero = [client for client, weight in zip(participants, weights or (), strict=False) if not weight]
    if not zero:
        return ()
    if len(zero) == len(participants):
        return ("no client's change agrees with the server's own: the global adapter stays as it was",)
    return (readable(f"the aggregation rule gave no weight to the change of client {', '.join(zero)}"),)
