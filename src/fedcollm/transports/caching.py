"""A cache of the clients' first updates: every method of a comparison starts from the same θ, so it is trained once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from safetensors.torch import save

from fedcollm.federation.server import Transport
from fedcollm.messages import Adapter, Answer, ClientUpdate, Request, Score, TrainRequest, payload_digest
from fedcollm.storage import one_at_a_time, replacing, writing

#: The only round that is cached. Later rounds start from each method's own aggregate, so no two methods share them.
SHARED_ROUND = 1


class CachingTransport:
    """A transport that keeps the updates of round 1 on disk, and does not ask a client to train for one that is there.

    It suits clients whose plain updates depend only on θ, their settings and their data. It must not be used under
    secure aggregation or differential privacy. A cached update reports the seconds that were measured when it was made.

    Args:
        inner: the transport that reaches the clients.
        directory: where updates are kept. Several processes may use it at once.
        settings: client id to everything that the client's update depends on besides the request, as plain values.
    """

    def __init__(self, inner: Transport, directory: Path, settings: Mapping[str, Mapping[str, Any]]):
        self._inner = inner
        self._directory = directory
        self._settings = settings

    def clients(self) -> Sequence[str]:
        """Return the ids of the clients."""
        return self._inner.clients()

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Yield one answer at a time, in the order of `requests`."""
        for client, request in requests.items():
            if isinstance(request, TrainRequest) and request.round_index == SHARED_ROUND and not request.keep:
                yield from self._cached(client, request)
            else:
                yield from self._inner.ask({client: request})

    def _cached(self, client: str, request: TrainRequest) -> Iterator[Answer]:
        """Yield a client's update from the cache. If it is not there, ask for it, and keep it."""
        settings = {"client": client, "round": request.round_index, "evaluate": request.evaluate}
        digest = payload_digest(request.adapter, settings | {"settings": dict(self._settings[client])})
        file = self._directory / f"{digest}.safetensors"
        with one_at_a_time(file):
            if file.exists():
                answers: list[Answer] = [_read(file)]
            else:
                answers = list(self._inner.ask({client: request}))
                for answer in answers:
                    if isinstance(answer, ClientUpdate):
                        _write(file, answer)
        yield from answers


def _write(file: Path, update: ClientUpdate) -> None:
    """Write an update: its adapter as tensors, the other fields as JSON in the header. The file is whole or absent."""
    score = (dict(update.score.sums), update.score.count) if update.score else None
    values = {"client": update.client, "round_index": update.round_index, "examples": update.examples}
    values |= {"loss": update.loss, "score": score, "seconds": dict(update.seconds)}
    tensors = {name: tensor.contiguous() for name, tensor in update.adapter.items()}
    with writing(file.parent), replacing(file) as temporary:
        temporary.write_bytes(save(tensors, metadata={"update": json.dumps(values)}))


def _read(file: Path) -> ClientUpdate:
    """Return the update that `_write` put into a file."""
    with cast("Any", safe_open)(file, framework="pt") as tensors:
        values = json.loads(tensors.metadata()["update"])
        adapter: Adapter = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    score = values.pop("score")
    return ClientUpdate(adapter=adapter, score=Score(*score) if score else None, **values)
