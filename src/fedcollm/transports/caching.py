"""A cache of the clients' updates of round 1, in which every method of a comparison starts from the same θ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from safetensors import safe_open

from fedcollm.federation.cohort import Simulation, Transport
from fedcollm.messages import Adapter, Answer, ClientUpdate, Request, Score, TrainRequest, payload_digest
from fedcollm.storage import one_at_a_time, replacing, writing

#: The only round that is cached: every later one starts from a θ that depends on the method.
CACHED_ROUND = 1


class CachingTransport:
    """Carry requests to the clients; answer those of round 1 from a cache on disk if their updates are in it.

    The clients must answer with plain updates, which depend on θ, their settings and their data alone. Do not use it
    with secure aggregation or differential privacy. The seconds in a cached update are those of its training.

    Args:
        inner: the transport that reaches the clients.
        directory: directory of the cache; several processes may use it at the same time.
        settings: client id to everything that its update depends on besides the request, as plain values.
    """

    def __init__(self, inner: Transport, directory: Path, settings: Mapping[str, Mapping[str, Any]]):
        self._inner = inner
        self._directory = directory
        self._settings = settings

    def clients(self) -> Sequence[str]:
        """Return the ids of the clients."""
        return self._inner.clients()

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Yield the answers one at a time, in the order of `requests`."""
        for client, request in requests.items():
            if isinstance(request, TrainRequest) and request.round_index == CACHED_ROUND and not request.keep:
                yield from self._cached(client, request)
            else:
                yield from self._inner.ask({client: request})

    def failures(self) -> Mapping[str, Exception]:
        """Return why clients failed on their data. An answer that comes from the cache is not that of a failure."""
        return self._inner.failures() if isinstance(self._inner, Simulation) else {}

    def own_scores(self) -> Mapping[str, Score]:
        """Return the scores of the adapters that clients keep for themselves, by client id."""
        return self._inner.own_scores() if isinstance(self._inner, Simulation) else {}

    def _cached(self, client: str, request: TrainRequest) -> Iterator[Answer]:
        """Yield the cached update; if there is none, ask the client and cache its update."""
        settings = {"client": client, "round": request.round_index, "evaluate": request.evaluate}
        digest = payload_digest(request.adapter, settings | {"settings": dict(self._settings[client])})
        file = self._directory / f"{digest}.safetensors"
        with one_at_a_time(file):
            if file.exists():
                answers: list[Answer] = [_read(file)]
            else:
                answers = list(self._inner.ask({client: request}))
                for answer in answers:
                    if isinstance(answer, ClientUpdate) and client not in self.failures():
                        _write(file, answer)
        yield from answers


def _write(file: Path, update: ClientUpdate) -> None:
    """Write an update atomically: its adapter as tensors, everything else as JSON in the file's header."""
    score = update.score.to_wire() if update.score else None
    values: dict[str, Any] = {"client": update.client, "round_index": update.round_index, "examples": update.examples}
    values |= {"loss": update.loss, "score": score, "seconds": dict(update.seconds)}
    tensors = {name: tensor.contiguous() for name, tensor in update.adapter.items()}
    with writing(file.parent), replacing(file) as temporary:
        cast(Any, safetensors.torch).save_file(tensors, temporary, metadata={"update": json.dumps(values)})


def _read(file: Path) -> ClientUpdate:
    """Return the update that `_write` wrote."""
    with cast(Any, safe_open)(file, framework="pt") as tensors:
        values = json.loads(tensors.metadata()["update"])
        adapter: Adapter = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    score = values.pop("score")
    return ClientUpdate(adapter=adapter, score=Score.from_wire(score) if score else None, **values)
