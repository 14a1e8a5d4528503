"""Every refusal of a combination of keys, each a row of one table: when it applies, and what to say.

A rule that a single key or section can check by itself stands with that section; what is here needs two sections.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedcollm.config.choices import AGGREGATIONS
from fedcollm.config.federation import FederationConfig, asked_clients
from fedcollm.config.models import AdapterConfig

if TYPE_CHECKING:
    from fedcollm.config.run import RunConfig

Rule = Callable[["RunConfig"], Iterator[str]]


def refusals(config: "RunConfig") -> list[str]:
    """Return what is wrong with a configuration as a whole, one message per refused combination."""
    return [reason for rule in RULES for reason in rule(config)]


def clients_per_round(config: "RunConfig") -> int:
    """Return the number of clients that a round asks."""
    federation = config.federation
    clients = config.task.clients if federation.participants is None else len(federation.participants)
    return asked_clients(clients, federation.fraction) if clients else 0


def _enough_clients(config: "RunConfig") -> Iterator[str]:
    federation, asked = config.federation, clients_per_round(config)
    if federation.min_clients > 1 and federation.secure_aggregation.enabled:
        yield (
            f"federation.min_clients {federation.min_clients} with secure_aggregation: the number of clients that a "
            "sum needs is federation.secure_aggregation.threshold. Set that instead"
        )
    if asked and federation.min_clients > asked:
        yield (
            f"federation.min_clients {federation.min_clients}, but a round asks only {asked} clients. "
            "Lower it, or raise task.clients or federation.fraction"
        )
    if federation.secure_aggregation.enabled and 0 < asked < 3:
        yield (
            f"federation.secure_aggregation needs at least 3 clients in a round, and here {asked} would be asked: "
            "of a sum of two, each learns the other's part. Raise task.clients or federation.fraction"
        )


def _privacy(config: "RunConfig") -> Iterator[str]:
    federation, privacy, client = config.federation, config.federation.privacy, config.client
    if privacy is None:
        return
    if privacy.level == "client" and privacy.sampling_rate is not None:
        yield (
            f"federation.privacy: sampling_rate {privacy.sampling_rate:g} means nothing at level client: leave it out"
        )
    if privacy.level == "example" and privacy.sampling_rate is None:
        yield "federation.privacy: level example needs sampling_rate, such as batch_size / private_size"
    if federation.weighted:
        yield (
            f"federation.privacy: aggregation: {federation.aggregation} weighs by the clients' numbers of examples, "
            "which are private; set federation.aggregation: uniform"
        )
    if privacy.level == "client" and not federation.secure_aggregation.enabled:
        yield (
            "federation.privacy: at level client each client adds only its share of the noise, too little for a server "
            "that sees single updates; set federation.secure_aggregation: true"
        )
    if privacy.level == "client":
        return
    if config.slm.adapter.kind.lower() != "lora":
        yield (
            "federation.privacy: level example needs gradients of single examples, which slm.adapter.kind: "
            f"{config.slm.adapter.kind} does not give; set slm.adapter.kind: lora"
        )
    if client.proximal:
        yield (
            f"federation.privacy: client.proximal {client.proximal:g} is not part of DP-SGD's step; "
            "set client.proximal: 0"
        )
    if client.max_grad_norm is not None:
        yield (
            "federation.privacy: level example clips the gradient of each example (federation.privacy.clip), not their "
            "sum; set client.max_grad_norm: null"
        )
    if client.gradient_accumulation > 1:
        yield (
            f"federation.privacy: client.gradient_accumulation {client.gradient_accumulation} means nothing at level "
            "example, whose batches are drawn at sampling_rate; set client.gradient_accumulation: 1"
        )


def needs_single_updates(federation: FederationConfig, key: str, value: object, instead: str) -> Iterator[str]:
    """Yield why a key that needs single updates, or gives them another form, conflicts with what hides them.

    Args:
        federation: the section that may hide them.
        key: with its section.
        value: that it has.
        instead: value that is always allowed.
    """
    secure = federation.secure_aggregation
    hiding = {
        "secure_aggregation": (secure.enabled, "the server sees only a sum of 32-bit words, as many at each client"),
        "secure_aggregation.simulate_quantization": (
            secure.simulate_quantization,
            "it does as secure aggregation, whose sum is of 32-bit words",
        ),
        "privacy": (federation.privacy is not None, "its noise was worked out for a whole update in 32 bits"),
    }
    for name, (is_on, reason) in hiding.items():
        if is_on:
            yield f"{key} {value} with federation.{name}: {reason}. Set {key}: {instead}"
            return


def _not_plain_lora(adapter: AdapterConfig, what: str) -> Iterator[str]:
    """Yield why something that takes LoRA's A and B apart doesn't work with this adapter."""
    if adapter.kind.lower() != "lora" or adapter.options.get("use_dora"):
        yield f"{what} needs LoRA's A and B alone. Set slm.adapter.kind: lora, without use_dora"
    elif adapter.freeze_a:
        yield f"{what} needs both A and B to travel. Set slm.adapter.freeze_a: false (with it a mean is exact)"


def _aggregation(config: "RunConfig") -> Iterator[str]:
    federation, name = config.federation, config.federation.aggregation
    choice, optimizer = AGGREGATIONS[name], config.federation.server_optimizer
    if choice.single_updates:
        yield from needs_single_updates(federation, "federation.aggregation", name, "mean or uniform")
    if choice.plain_lora:
        yield from _not_plain_lora(config.slm.adapter, f"federation.aggregation {name}")
    if name == "product" and not optimizer.is_plain:
        yield (
            f"federation.aggregation product with federation.server_optimizer {optimizer.kind}, learning_rate "
            f"{optimizer.learning_rate:g}: a server optimizer moves A and B themselves, which the product's mean makes "
            "anew in every round. Set federation.server_optimizer.kind: average and "
            "federation.server_optimizer.learning_rate: 1, or federation.aggregation: mean"
        )
    if name == "product" and config.server.layer_transfer:
        yield (
            f"server.layer_transfer {config.server.layer_transfer:g} with federation.aggregation product: what is "
            "moved is the change of A and B themselves, which the product's mean makes anew. Change one of them"
        )


def _uploads(config: "RunConfig") -> Iterator[str]:
    federation, ranks, adapter = config.federation, config.client.ranks, config.slm.adapter
    if federation.upload != "float32":
        yield from needs_single_updates(federation, "federation.upload", federation.upload, "float32")
    if ranks is None:
        return
    yield from needs_single_updates(federation, "client.ranks", ranks, "null")
    yield from _not_plain_lora(adapter, f"client.ranks {ranks}")
    if federation.aggregation not in ("mean", "uniform", "product"):
        yield (
            f"client.ranks {ranks} with federation.aggregation {federation.aggregation}, which needs updates of one "
            "shape. Set federation.aggregation: mean, or client.ranks: null"
        )
    if max(ranks) > adapter.rank:
        yield (
            f"client.ranks {ranks} go up to {max(ranks)}, and the adapter that they are parts of has rank "
            f"{adapter.rank}. Raise slm.adapter.rank, or lower client.ranks"
        )


def _layer_transfer(config: "RunConfig") -> Iterator[str]:
    slm, llm, share = config.slm, config.llm, config.server.layer_transfer
    cut = slm.source == llm.source and llm.layers is None
    cut = cut and not slm.pretrain_epochs + llm.pretrain_epochs  # each role would be pretrained by itself
    adapters = slm.adapter == llm.adapter and slm.adapter.kind.lower() == "lora"
    if share and not (cut and adapters and not slm.adapter.freeze_a):
        yield (
            f"server.layer_transfer {share:g} needs an SLM that was cut from the LLM by layers (slm.source as "
            "llm.source, llm.layers null, no pretrain_epochs) and the same adapter for both, of kind lora and without "
            "freeze_a. Set those, or server.layer_transfer: 0"
        )


def _something_to_train(config: "RunConfig") -> Iterator[str]:
    if config.server.epochs and not config.task.public_size + config.task.unlabelled_size:
        yield (
            "server.epochs > 0 needs public data: set task.public_size or task.unlabelled_size, "
            "or server.epochs: 0 (FedAvg)"
        )
    if config.federation.participants == [] and not config.server.epochs:
        yield "federation.participants: [] with server.epochs: 0 trains nothing"


#: In the order in which their messages appear.
RULES: tuple[Rule, ...] = (_enough_clients, _privacy, _aggregation, _uploads, _layer_transfer, _something_to_train)
