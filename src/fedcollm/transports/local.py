"""All clients in this process, one after the other, on one base model."""

from collections.abc import Iterator, Mapping, Sequence

from fedcollm.federation.client import Client
from fedcollm.messages import ClientUpdate, TrainRequest


class LocalTransport:
    """Clients that share one SLM and swap adapters, so that memory does not grow with their number.

    Args:
        clients: id to client.
    """

    def __init__(self, clients: Mapping[str, Client]):
        self._clients = dict(clients)

    def clients(self) -> Sequence[str]:
        """Ids of the clients, in the order in which they were given."""
        return list(self._clients)

    def train(self, request: TrainRequest, ids: Sequence[str]) -> Iterator[ClientUpdate]:
        """One update at a time, in the order of `ids`."""
        for client in ids:
            yield self._clients[client].train(request)
