"""Round 1 of clients that several runs have in common, trained once: every method starts from the same θ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from fedcollm.federation.server import Transport
from fedcollm.messages import Answer, ClientUpdate, Request, Score, TrainRequest, payload_digest
from fedcollm.storage import one_at_a_time, replacing, writing

#: Later rounds start from what the method made of this one, so that no two methods share them.
SHARED_ROUND = 1


class CachingTransport:
    """Clients whose updates of round 1 are kept on disk, and are not trained again where they are there.

    For clients that answer with plain updates, which are functions of θ, their settings and their data alone: neither
    for secure aggregation nor under privacy. Seconds are those that were measured when the update was made.

    Args:
        inner: the way to the clients.
        directory: where updates are kept; several processes may use it at once.
        settings: client id to all that its update depends on beside the request, as plain values.
    """

    def __init__(self, inner: Transport, directory: Path, settings: Mapping[str, Mapping[str, Any]]):
        self._inner = inner
        self._directory = directory
        self._settings = settings

    def clients(self) -> Sequence[str]:
        """Ids of the clients."""
        return self._inner.clients()

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """One answer at a time, in the order of `requests`."""
        for client, request in requests.items():
            if isinstance(request, TrainRequest) and request.round_index == SHARED_ROUND and not request.keep:
                yield from self._remembered(client, request)
            else:
                yield from self._inner.ask({client: request})

    def _remembered(self, client: str, request: TrainRequest) -> Iterator[Answer]:
        settings = {"client": client, "round": request.round_index, "evaluate": request.evaluate}
        digest = payload_digest(request.adapter, settings | {"settings": dict(self._settings[client])})
        file = self._directory / f"{digest}.safetensors"
        with one_at_a_time(file):
            if file.exists():
                answers = [_read(file)]
            else:
                answers = list(self._inner.ask({client: request}))
                for answer in answers:
                    if isinstance(answer, ClientUpdate):
                        _write(file, answer)
        yield from answers


def _write(file: Path, update: ClientUpdate) -> None:
    """Keep an update: its adapter as tensors, all else as JSON in the header; the file is whole or absent."""
    score = (dict(update.score.sums), update.score.count) if update.score else None
    values = {"client": update.client, "round_index": update.round_index, "examples": update.examples}
    values |= {"loss": update.loss, "score": score, "seconds": dict(update.seconds)}
    tensors = {name: tensor.contiguous() for name, tensor in update.adapter.items()}
    with writing(file.parent), replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"update": json.dumps(values)})


def _read(file: Path) -> ClientUpdate:
    """Inverse of `_write`."""
    with safe_open(file, framework="pt") as tensors:
        values = json.loads(tensors.metadata()["update"])
        adapter = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    score = values.pop("score")
    return ClientUpdate(adapter=adapter, score=Score(*score) if score else None, **values)
