"""All clients in this process, one after another, on one base model."""

from collections.abc import Iterator, Mapping, Sequence

from fedcollm.errors import RefusalError
from fedcollm.federation.client import Client
from fedcollm.federation.operator import Operator
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.messages import Answer, Failure, Request, Score


class LocalTransport:
    """Clients that share one SLM and swap adapters, so that memory does not grow with the number of clients.

    Args:
        clients: client id to client.
    """

    def __init__(self, clients: Mapping[str, Client | SecureClient]):
        self._clients = dict(clients)

    def clients(self) -> Sequence[str]:
        """Return the ids of the clients, in the order in which they were given."""
        return list(self._clients)

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Yield one answer at a time, in the order of `requests`."""
        for client, request in requests.items():
            try:
                yield self._clients[client].answer(request)
            except RefusalError as error:
                yield Failure(client, str(error))

    def failures(self) -> Mapping[str, Exception]:
        """Return why clients could not carry out their last request on their data, by client id."""
        return {client: why for client in self._clients if (why := self._operator(client).failure) is not None}

    def own_scores(self) -> Mapping[str, Score]:
        """Return the scores of the adapters that clients keep for themselves, by client id."""
        return {client: kept for client in self._clients if (kept := self._operator(client).kept) is not None}

    def _operator(self, client: str) -> Operator:
        one = self._clients[client]
        return (one.client if isinstance(one, SecureClient) else one).operator
