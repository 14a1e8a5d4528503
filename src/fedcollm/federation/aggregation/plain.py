"""Aggregation of plain updates, which the server sees one by one (Algorithm 1, server side)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedcollm.config import FederationConfig
from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.base import NO_UPDATE, Aggregate, Ask, Rule
from fedcollm.federation.aggregation.mean import ComponentMean, WeightedMean
from fedcollm.federation.aggregation.observations import Observer
from fedcollm.federation.aggregation.rules import RULES
from fedcollm.federation.aggregation.validation import Expected, in_order, validate_updates, with_client_failures
from fedcollm.federation.statistics import asked_for
from fedcollm.federation.upload_format import WHOLE, UploadFormat
from fedcollm.messages import Adapter, ClientUpdate, TrainRequest, adapter_bytes


@dataclass(frozen=True)
class PlainAggregator:
    """Combines plain updates with the rule that `federation.aggregation` names.

    Attributes:
        settings: the rule, the smallest number of clients, and the limits of a valid update.
        uploads: the upload format of each client, by id; a client without an entry sends the whole adapter.
    """

    settings: FederationConfig = field(default_factory=FederationConfig)
    uploads: Mapping[str, UploadFormat] = field(default_factory=dict[str, UploadFormat])

    def aggregate(self, ask: Ask, request: TrainRequest, clients: Sequence[str]) -> Aggregate:
        """Ask clients to train, and return the mean of their updates; see `Aggregator`."""
        private, lost = self.settings.privacy is not None, dict[str, str]()
        expected = Expected(request, clients, self.settings.max_update_norm, private, self.uploads)
        updates = validate_updates(ask(dict.fromkeys(clients, request)), expected, lost)
        with with_client_failures(lost):
            mean = self.combine(in_order(updates, clients), request)
            if len(mean.participants) < self.settings.min_clients:
                raise RoundFailedError(
                    f"round {request.round_index}: {len(mean.participants)} of {len(clients)} clients gave an update, "
                    f"and {self.settings.min_clients} are needed. The last good state is kept: bring the clients back "
                    "and run again with --resume."
                )
        down = adapter_bytes(request.adapter)
        return replace(mean, lost=lost, bytes_up=self.bytes_up(request.adapter, clients), bytes_down=down)

    def combine(self, updates: Iterable[ClientUpdate], request: TrainRequest) -> Aggregate:
        """Return the mean of valid updates.

        Args:
            updates: the updates in a fixed order.
            request: the request that the clients answer.

        Raises:
            RoundFailedError: there are no updates.
        """
        rule, weighted = self._rule(request.adapter), self.settings.weighted
        if asked_for(request):
            return combine(updates, rule, weighted)
        observer = Observer(request.adapter, self.uploads)
        return replace(combine(observer.watch(updates), rule, weighted), observed=observer.seen())

    def bytes_up(self, theta: Adapter, clients: Sequence[str]) -> int:
        """Return the size of the update of one of these clients in bytes, on average."""
        forms = (self.uploads.get(client, WHOLE).expected(theta) for client in clients)
        return sum(map(adapter_bytes, forms)) // max(len(clients), 1)

    def _rule(self, theta: Adapter) -> Rule:
        """Return the rule of the settings; if clients have different ranks, a mean becomes a mean per component."""
        rule = RULES[self.settings.aggregation](theta)
        if isinstance(rule, WeightedMean) and any(upload.rank is not None for upload in self.uploads.values()):
            return ComponentMean(theta)
        return rule


def combine(updates: Iterable[ClientUpdate], rule: Rule, weighted: bool = True) -> Aggregate:
    """Combine updates, one after the other.

    Args:
        updates: the updates in a fixed order.
        rule: a new rule, to which nothing was added yet.
        weighted: whether to weight clients by their number of examples, n_k / n (FedAvg, McMahan et al. 2017), instead
            of equally, 1/K (the paper's Algorithm 1). Updates without a number of examples need equal weights.

    Raises:
        RoundFailedError: there are no updates.
    """
    examples = loss = 0.0
    scores: list[float] = []
    seconds: dict[str, float] = {}
    participants: list[str] = []
    for update in updates:
        rule.add(update.adapter, float(update.examples or 0) if weighted else 1.0)
        examples += update.examples or 0
        loss += (update.loss or 0.0) * (update.examples or 0)
        scores += [update.score.value] if update.score else []
        seconds = {part: seconds.get(part, 0.0) + value for part, value in update.seconds.items()}
        participants.append(update.client)
    if not participants:
        raise RoundFailedError(NO_UPDATE)
    mean_score = sum(scores) / len(scores) if scores else None
    mean_loss = loss / examples if examples else None
    return Aggregate(
        rule.value(), mean_loss, mean_score, seconds, tuple(participants), examples=round(examples) or None
    )
