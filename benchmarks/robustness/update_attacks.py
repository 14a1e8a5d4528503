"""Hostile updates: functions from what a client would have sent to what it sends, and the client that sends it.

The hostile clients of a row share what they know. They are the last to be asked, and know all honest updates of the
round, which is more than any real attacker would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from fedcollm.federation.client import Client
from fedcollm.messages import Adapter, ClientUpdate, TrainRequest
from fedcollm.seeding import derive_seed


@dataclass(frozen=True)
class Knowledge:
    """What a hostile client knows of one tensor.

    Attributes:
        own: its own honest change.
        honest: the changes of the honest clients, [K, ...].
        count: the number of hostile clients.
        random: a source of random numbers.
    """

    own: Tensor
    honest: Tensor
    count: int
    random: torch.Generator


#: From what is known of one tensor to the change that is sent.
UpdateAttack = Callable[[Knowledge], Tensor]


def sign_flip(known: Knowledge) -> Tensor:
    """The opposite of the own change."""
    return -known.own


def times_1000(known: Knowledge) -> Tensor:
    """A thousand times the own change."""
    return 1000 * known.own


def noise(known: Knowledge) -> Tensor:
    """Gaussian noise with ten times the norm of the own change, tensor by tensor."""
    drawn = torch.randn(known.own.shape, generator=known.random, dtype=known.own.dtype)
    return drawn * (10 * known.own.norm() / drawn.norm().clamp(min=1e-12))


def alie(known: Knowledge) -> Tensor:
    """A Little Is Enough (Baruch et al., arXiv 1902.06635): 1.5 standard deviations below the mean of each value."""
    return known.honest.mean(0) - 1.5 * known.honest.std(0, correction=0)


def inner_product(known: Knowledge) -> Tensor:
    """Inner-product manipulation (Xie et al., arXiv 1903.03936): the mean of all K points backward, half as far."""
    return -1.5 * len(known.honest) / known.count * known.honest.mean(0)


@dataclass
class Seen:
    """The honest updates of the latest round, which hostile clients look at.

    Attributes:
        hostile: the number of hostile clients.
        updates: the updates.
    """

    hostile: int
    updates: list[ClientUpdate] = field(default_factory=list)

    def add(self, update: ClientUpdate) -> None:
        """Add an honest update, and forget those of other rounds."""
        self.updates = [one for one in self.updates if one.round_index == update.round_index]
        self.updates.append(update)


@dataclass(frozen=True)
class Watched(Client):
    """An honest client whose updates the hostile ones see."""

    seen: Seen = field(kw_only=True)

    def train(self, request: TrainRequest) -> ClientUpdate:
        """Train as agreed."""
        update = super().train(request)
        self.seen.add(update)
        return update


@dataclass(frozen=True)
class Hostile(Watched):
    """A client that trains as agreed and sends something else."""

    attack: UpdateAttack = field(kw_only=True)

    def train(self, request: TrainRequest) -> ClientUpdate:
        """Train, and replace the change."""
        update, theta = Client.train(self, request), request.adapter
        honest = [one.adapter for one in self.seen.updates if one.round_index == request.round_index]
        random = torch.Generator().manual_seed(derive_seed(0, "attack", self.id, request.round_index))
        sent: Adapter = {}
        for name, tensor in update.adapter.items():
            known = Knowledge(
                tensor - theta[name], _stacked(honest or [update.adapter], theta, name), self.seen.hostile, random
            )
            sent[name] = (theta[name] + self.attack(known)).to(tensor.dtype)
        return replace(update, adapter=sent)


def _stacked(adapters: Sequence[Adapter], theta: Adapter, name: str) -> Tensor:
    return torch.stack([adapter[name] - theta[name] for adapter in adapters])


def watched(client: Client, seen: Seen) -> Watched:
    """The same client, whose updates are seen."""
    return Watched(**_values(client), seen=seen)


def hostile(client: Client, seen: Seen, attack: UpdateAttack) -> Hostile:
    """The same client, as a hostile one."""
    return Hostile(**_values(client), seen=seen, attack=attack)


def _values(client: Client) -> dict[str, Any]:
    return {one.name: getattr(client, one.name) for one in fields(Client)}
