"""What secure aggregation costs in one process, beside the plain weighted mean: seconds and bytes.

Usage: python benchmarks/secure_aggregation.py [--parameters 1000000,10000000] [--clients 4,32]

Prints one line a combination. All clients and the server work one after the other, so a real federation's clients are
faster by their number. A client that is lost after the share phase is counted too (`--lost 1`).
"""

import argparse
import time

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcollm.federation.aggregation.validation import aggregate
from fedcollm.federation.secagg.fixed_point import STATISTICS, FixedPoint, statistics
from fedcollm.federation.secagg.protocol import Participant
from fedcollm.federation.secagg.server import collect_sum
from fedcollm.messages import ClientUpdate, Session, adapter_bytes


def update(client: int, parameters: int) -> ClientUpdate:
    """A client's change of one large tensor, made from its id."""
    generator = torch.Generator().manual_seed(client)
    adapter = {"lora_A": torch.empty(parameters).uniform_(-0.05, 0.05, generator=generator)}
    return ClientUpdate(f"{client:03}", 1, adapter, 300 + client, 1.0)


def measure(parameters: int, count: int, lost: int) -> str:
    """One combination as a line."""
    updates = [update(client, parameters) for client in range(count)]
    survivors = updates[: count - lost]
    start = time.perf_counter()
    expected = aggregate(survivors).adapter
    plain = time.perf_counter() - start
    keys = {one.client: Ed25519PrivateKey.generate() for one in updates}
    roster = {client: key.public_key() for client, key in keys.items()}
    encoding = FixedPoint(count, 4096, 1.0)
    session, up = Session.fresh("benchmark", 1, roster), 0
    start = time.perf_counter()
    members = {
        one.client: Participant(
            one.client,
            session,
            encoding.encode(one.adapter, one.examples, statistics(one)),
            keys[one.client],
            roster,
            {},
        )
        for one in updates
    }
    silent = {one.client for one in updates[count - lost :]}

    def exchange(phase, requests):
        nonlocal up
        for client, items in requests.items():
            if phase != "share" and client in silent:
                continue
            answer = getattr(members[client], phase)(items)
            up += sum(len(name) + len(value) for name, value in answer.items())
            yield client, answer

    advertised = {client: member.advertise()["keys"] for client, member in members.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in updates[0].adapter.items()}
    total = collect_sum(exchange, session, advertised, roster, encoding.words(shapes, len(STATISTICS)))
    changes, sums = encoding.decode(total.vector, shapes, STATISTICS)
    secure = time.perf_counter() - start
    error = max(float((changes[name] / sums["examples"] - expected[name]).abs().max()) for name in expected)
    size = adapter_bytes(updates[0].adapter)
    return (
        f"{parameters / 1e6:4.0f} M parameters, {count:2} clients, {lost} lost: plain {plain:6.2f} s, "
        f"secure {secure:6.2f} s ({secure / plain:4.1f} x); up {up / len(survivors) / parameters:.3f} bytes a "
        f"parameter (plain {size / parameters:.3f}); largest error of the mean {error:.1e}"
    )


def main() -> None:
    """Measure every combination."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", default="1000000,10000000")
    parser.add_argument("--clients", default="4,32")
    parser.add_argument("--lost", type=int, default=0)
    given = parser.parse_args()
    for parameters in map(int, given.parameters.split(",")):
        for clients in map(int, given.clients.split(",")):
            print(measure(parameters, clients, given.lost), flush=True)


if __name__ == "__main__":
    main()
