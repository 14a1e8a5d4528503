"""Rules that refuse combinations of keys, listed in `RULES`. Each rule yields one message per violation.

A check that needs only one section is in that section's class. The rules here compare several sections.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedcollm.config.augmentation import refused
from fedcollm.config.choices import AGGREGATIONS
from fedcollm.config.federation import FederationConfig, asked_clients
from fedcollm.config.models import AdapterConfig
from fedcollm.config.rules_cleaning import cleaning
from fedcollm.config.rules_robust import bounds, faulty_clients, gate, robust_losses
from fedcollm.config.rules_statistics import control, profile, pseudo_labels
from fedcollm.config.training import ClientConfig

if TYPE_CHECKING:
    from fedcollm.config.run import RunConfig

Rule = Callable[["RunConfig"], Iterator[str]]


def refusals(config: "RunConfig") -> list[str]:
    """Return one message for each combination of keys in a configuration that is refused."""
    return [reason for rule in RULES for reason in rule(config)]


def clients_per_round(config: "RunConfig") -> int:
    """Return the number of clients that are sampled for a round; 0 without clients, or if the data says how many."""
    federation = config.federation
    clients = config.task.clients if federation.participants is None else len(federation.participants)
    return asked_clients(clients, federation.fraction) if clients else 0


def _enough_clients(config: "RunConfig") -> Iterator[str]:
    federation, asked = config.federation, clients_per_round(config)
    if federation.min_clients > 1 and federation.secure_aggregation.enabled:
        yield (
            f"federation.min_clients {federation.min_clients} can't be combined with secure_aggregation, whose quorum "
            "is federation.secure_aggregation.threshold. Set that instead"
        )
    if asked and federation.min_clients > asked:
        yield (
            f"federation.min_clients {federation.min_clients} is more than the {asked} clients of a round. "
            "Lower it, or raise task.clients or federation.fraction"
        )
    if federation.secure_aggregation.enabled and 0 < asked < 3:
        yield (
            f"federation.secure_aggregation needs at least 3 clients in a round, but a round has {asked}: in a sum of "
            "two, each client learns the other's part. Raise task.clients or federation.fraction"
        )


def _privacy(config: "RunConfig") -> Iterator[str]:
    federation, privacy = config.federation, config.federation.privacy
    if privacy is None:
        return
    if privacy.level == "client" and privacy.sampling_rate is not None:
        yield f"federation.privacy: sampling_rate {privacy.sampling_rate:g} has no effect at level client. Remove it"
    if privacy.level == "example" and privacy.sampling_rate is None:
        yield "federation.privacy: level example needs sampling_rate. Set it to about batch_size / private_size"
    if federation.weighted:
        yield (
            f"federation.privacy: aggregation {federation.aggregation} weights clients by their numbers of examples, "
            "which are private. Set federation.aggregation: uniform"
        )
    if privacy.level == "client" and not federation.secure_aggregation.enabled:
        yield (
            "federation.privacy: at level client, each client adds only its share of the noise, which is too little "
            "if the server sees single updates. Set federation.secure_aggregation: true"
        )
    if privacy.level == "client" and federation.secure_aggregation.bits < 32:
        yield (
            f"federation.privacy: at level client, the noise is calibrated for 32 bits per value, not "
            f"{federation.secure_aggregation.bits}. Set federation.secure_aggregation.bits: 32"
        )
    if privacy.level == "example":
        yield from _example_privacy(config.slm.adapter, config.client)
        if config.slm.gradient_checkpointing:
            yield (
                "federation.privacy: level example takes per-example gradients from one forward pass, which "
                "slm.gradient_checkpointing would repeat. Set slm.gradient_checkpointing: false, and lower "
                "client.micro_batch_size if memory runs out"
            )


def _example_privacy(adapter: AdapterConfig, client: ClientConfig) -> Iterator[str]:
    """Yield what DP-SGD, which example-level privacy uses, can't be combined with."""
    if adapter.kind.lower() != "lora":
        yield (
            f"federation.privacy: level example needs per-example gradients, which slm.adapter.kind: {adapter.kind} "
            "does not support. Set slm.adapter.kind: lora"
        )
    if adapter.core:
        yield (
            "federation.privacy: level example needs per-example gradients of whole matrices, which slm.adapter.core "
            "does not have. Set slm.adapter.core: false, or level: client"
        )
    if client.proximal:
        yield (
            f"federation.privacy: client.proximal {client.proximal:g} is not part of a DP-SGD step. "
            "Set client.proximal: 0"
        )
    if client.max_grad_norm is not None:
        yield (
            f"federation.privacy: client.max_grad_norm {client.max_grad_norm:g} clips sums of gradients, but level "
            "example clips per-example gradients (federation.privacy.clip). Set client.max_grad_norm: null"
        )
    if client.gradient_accumulation > 1:
        yield (
            f"federation.privacy: client.gradient_accumulation {client.gradient_accumulation} has no effect at level "
            "example, whose batches are drawn at sampling_rate. Set client.gradient_accumulation: 1"
        )
    if client.augmentation is not None:
        yield (
            "federation.privacy: client.augmentation is not part of a DP-SGD step, which level example takes. Set "
            "client.augmentation: null, or level: client"
        )


def _augmentation(config: "RunConfig") -> Iterator[str]:
    yield from refused(config.client.augmentation, config.task)


def needs_single_updates(federation: FederationConfig, key: str, value: object, instead: str) -> Iterator[str]:
    """Yield a message if secure aggregation, its simulation or privacy is on, which a key can't be combined with.

    Args:
        federation: the section whose secure aggregation or privacy may be on.
        key: dotted name of the key.
        value: current value of the key.
        instead: a value of the key that this rule allows.
    """
    secure = federation.secure_aggregation
    hiding = {
        "secure_aggregation": (
            secure.enabled,
            "the server sees only a sum, to which each client adds equally many values",
        ),
        "secure_aggregation.simulate_quantization": (
            secure.simulate_quantization,
            "it simulates secure aggregation, whose server sees only a sum",
        ),
        "privacy": (federation.privacy is not None, "its noise is calibrated for a whole update in 32 bits"),
    }
    for name, (is_on, reason) in hiding.items():
        if is_on:
            yield f"{key} {value} can't be combined with federation.{name}: {reason}. Set {key}: {instead}"
            return


def _not_plain_lora(adapter: AdapterConfig, what: str) -> Iterator[str]:
    """Yield a message if an adapter is not plain LoRA with trainable A and B, which a feature (`what`) needs."""
    if adapter.kind.lower() != "lora" or adapter.options.get("use_dora"):
        yield f"{what} needs a plain LoRA adapter. Set slm.adapter.kind: lora, without use_dora"
    elif adapter.is_partial:
        key, frozen = ("core", "cores") if adapter.core else ("freeze_a", "a frozen A")
        yield (
            f"{what} needs clients to send both A and B. Set slm.adapter.{key}: false (a plain mean is already "
            f"exact for {frozen})"
        )


def _aggregation(config: "RunConfig") -> Iterator[str]:
    federation, name = config.federation, config.federation.aggregation
    choice, optimizer = AGGREGATIONS[name], config.federation.server_optimizer
    if choice.single_updates:
        yield from needs_single_updates(federation, "federation.aggregation", name, "uniform")
    if choice.plain_lora:
        yield from _not_plain_lora(config.slm.adapter, f"federation.aggregation {name}")
    if federation.clip_to_median is not None:
        value = f"{federation.clip_to_median:g}"
        yield from needs_single_updates(federation, "federation.clip_to_median", value, "null")
    yield from faulty_clients(federation, clients_per_round(config))
    if name == "product" and not optimizer.is_plain:
        yield (
            f"federation.aggregation product can't be combined with federation.server_optimizer {optimizer.kind}, "
            f"learning_rate {optimizer.learning_rate:g}: a server optimizer steps on A and B, which the mean of "
            "products factorizes anew in every round. Set federation.server_optimizer.kind: average and "
            "federation.server_optimizer.learning_rate: 1, or federation.aggregation: mean"
        )
    if name == "product" and config.server.layer_transfer:
        yield (
            f"server.layer_transfer {config.server.layer_transfer:g} can't be combined with federation.aggregation "
            "product: it transfers the change of A and B, which the mean of products factorizes anew in every round. "
            "Set server.layer_transfer: 0 or federation.aggregation: mean"
        )


def _uploads(config: "RunConfig") -> Iterator[str]:
    federation, ranks, adapter = config.federation, config.client.ranks, config.slm.adapter
    if federation.upload != "float32":
        instead = "float32, and federation.secure_aggregation.bits if clients are to send less"
        yield from needs_single_updates(federation, "federation.upload", federation.upload, instead)
    if federation.download.startswith("int"):
        yield from _differences(config)
    if ranks is None:
        return
    yield from needs_single_updates(federation, "client.ranks", ranks, "null")
    yield from _not_plain_lora(adapter, f"client.ranks {ranks}")
    if federation.aggregation not in ("mean", "uniform", "product"):
        yield (
            f"client.ranks {ranks} can't be combined with federation.aggregation {federation.aggregation}, which needs "
            "updates of one shape. Set federation.aggregation: mean, or client.ranks: null"
        )
    if max(ranks) > adapter.rank:
        yield (
            f"client.ranks {ranks} exceed the rank of the whole adapter, slm.adapter.rank {adapter.rank}. "
            "Raise slm.adapter.rank, or lower client.ranks"
        )


def _differences(config: "RunConfig") -> Iterator[str]:
    """Yield what a broadcast of differences from the untrained adapter can't be combined with."""
    start, name = config.slm.adapter.start, config.federation.download
    if start is not None:
        yield (
            f"federation.download {name} sends how the adapter differs from the untrained one, which slm.adapter.start "
            f"{start} is not: clients never receive it. Set federation.download: bfloat16, or slm.adapter.start: null"
        )
    if config.federation.aggregation == "product":
        yield (
            f"federation.download {name} sends how the adapter differs from the untrained one, and "
            "federation.aggregation product factorizes it anew in every round. Set federation.download: bfloat16, or "
            "federation.aggregation: mean"
        )


def transferable(config: "RunConfig") -> bool:
    """Return whether the SLM consists of the LLM's layers, and both have the same plain LoRA adapter."""
    slm, llm = config.slm, config.llm
    cut = slm.source == llm.source and llm.layers is None and llm.heal is None and slm.mlp_share == 1
    cut = cut and not slm.pretrain_epochs + llm.pretrain_epochs  # each role would be pretrained by itself
    whatever = {"start": None}  # what they start from may differ
    same = slm.adapter.model_copy(update=whatever) == llm.adapter.model_copy(update=whatever)
    adapters = same and slm.adapter.kind.lower() == "lora"
    return cut and adapters and not slm.adapter.is_partial


def _layer_transfer(config: "RunConfig") -> Iterator[str]:
    share = config.server.layer_transfer
    if share and not transferable(config):
        yield (
            f"server.layer_transfer {share:g} needs an SLM that consists of the LLM's layers (the same source, "
            "llm.layers and llm.heal: null, slm.mlp_share: 1, pretrain_epochs: 0) and the same adapter settings for "
            "both models, of kind lora and without freeze_a and core. Set these, or server.layer_transfer: 0"
        )


def _fresh_slm(config: "RunConfig") -> Iterator[str]:
    epochs, server = config.server.fresh_slm_epochs, config.server
    if epochs and not (server.epochs and server.distillation.weight):
        yield (
            f"server.fresh_slm_epochs {epochs} needs an LLM that teaches, but server.epochs or "
            "server.distillation.weight is 0. Raise them, or set server.fresh_slm_epochs: 0"
        )


def _length(config: "RunConfig") -> Iterator[str]:
    if config.task.max_length is not None and not config.task.is_text:
        yield f"task.max_length {config.task.max_length} is for text, and {config.task.name} has none. Remove it"


def _something_to_train(config: "RunConfig") -> Iterator[str]:
    unlabelled = {
        "task.unlabelled_size": config.task.unlabelled_size,
        "server.unlabelled_per_round": config.server.unlabelled_per_round,
    }
    none = next((name for name, value in unlabelled.items() if value == 0), None)
    if config.server.epochs and not config.task.public_size and none:
        yield (
            f"server.epochs {config.server.epochs} needs public data, but task.public_size is 0 and {none} is 0. Raise "
            "one of them, or set server.epochs: 0 (FedAvg)"
        )
    if config.federation.participants == [] and not config.server.epochs and config.control is None:
        yield (
            "federation.participants: [] with server.epochs: 0 trains nothing. "
            "Set participants: null, or raise server.epochs"
        )


#: All rules, in the order in which their messages appear.
RULES: tuple[Rule, ...] = (
    _enough_clients,
    _privacy,
    _aggregation,
    bounds,
    _uploads,
    _augmentation,
    _layer_transfer,
    _fresh_slm,
    _length,
    _something_to_train,
    control,
    pseudo_labels,
    profile,
    robust_losses,
    gate,
    cleaning,
)
