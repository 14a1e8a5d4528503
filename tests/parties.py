"""Clients, servers and loops with the settings that a test names; all others are as they are by default."""

import dataclasses
from collections.abc import Sequence
from typing import Any
from unittest import mock

from torch import Tensor, nn

from fedcollm.config import (
    AdapterConfig,
    ClientConfig,
    DistillationConfig,
    EvaluationConfig,
    FederationConfig,
    ServerConfig,
    ServerOptimizerConfig,
)
from fedcollm.federation.aggregation.base import Aggregate, Rule
from fedcollm.federation.aggregation.mean import WeightedMean
from fedcollm.federation.aggregation.plain import PlainAggregator, by_examples, combine, equally
from fedcollm.federation.client import Agreement, Client
from fedcollm.federation.operator import Operator
from fedcollm.federation.server import Server
from fedcollm.modalities.base import Modality, Rows, cross_entropy
from fedcollm.models import adapters
from fedcollm.seeding import RunIdentity
from fedcollm.training import distillation, dp_sgd, fine_tuning
from fedcollm.training.distillation import Losses, ModelPair

_DISTILLATION = set(DistillationConfig.model_fields)
_SERVER = set(ServerConfig.model_fields) - {"distillation"}
_FEDERATION = set(FederationConfig.model_fields)


def fit(modality: Modality, model: nn.Module, examples: Sequence[Any], *, seed: int, where="training", **settings):
    return fine_tuning.fit(modality, model, examples, ClientConfig(**settings), seed, where)


def fit_privately(
    modality: Modality, model: nn.Module, examples, *, privacy, stream=None, where="training", **settings
):
    """With a stream, all randomness except dropout comes from it."""
    with mock.patch.object(dp_sgd, "SecureStream", (lambda: stream) if stream else dp_sgd.SecureStream):
        return dp_sgd.fit_privately(modality, model, examples, ClientConfig(**settings), privacy)


def add_adapter(base: nn.Module, *, seed: int = 0, causal_lm: bool = True, base_name: str | None = None, **section):
    return adapters.add_adapter(base, AdapterConfig(**section), seed=seed, causal_lm=causal_lm, base_name=base_name)


def distil(modality: Modality, slm: nn.Module, llm: nn.Module, public: Sequence[Any], *, seed: int, **settings):
    made = server_config(ServerConfig(), settings)
    assert not settings, settings
    return distillation.distil(ModelPair(modality, slm, llm), public, made, seed)


def mutual_losses(slm: Tensor, llm: Tensor, targets: Tensor, **settings) -> Losses:
    """Of row-wise logits of both models with one set of targets."""
    losses = (cross_entropy(logits, targets) for logits in (slm, llm))
    return distillation.mutual_losses(*losses, Rows(slm, llm, targets, targets), DistillationConfig(**settings))


def mean_of(updates, weighted: bool = True, rule: Rule | None = None) -> Aggregate:
    """Updates in their own order, by number of examples unless all weigh the same."""
    return combine(updates, rule or WeightedMean(), by_examples if weighted else equally)


def client(name: str, modality: Modality, slm: nn.Module, examples: Sequence[Any], test: Sequence[Any], **settings):
    own = {key: settings.pop(key) for key in ("spent",) if key in settings}
    own["operator"] = Operator(settings.pop("store", None))
    identity = RunIdentity(settings.pop("run", ""), settings.pop("seed", 0))
    agreed = {
        key: settings.pop(key)
        for key in ("rounds", "privacy", "upload", "statistics", "trains", "limits")
        if key in settings
    }
    evaluation = EvaluationConfig(batch_size=settings.pop("evaluation_batch_size", 32))
    agreement = Agreement(identity, **agreed)
    return Client(name, modality, slm, examples, test, ClientConfig(**settings), evaluation, agreement, **own)


def agreeing(one: Client, **changes) -> Client:
    """The same client with another agreement."""
    return dataclasses.replace(one, agreement=dataclasses.replace(one.agreement, **changes))


def server(
    modality: Modality, slm: nn.Module, llm: nn.Module | None, transport: Any, public, test, **settings
) -> Server:
    layers = settings.pop("slm_layers", ())
    initial = {key: settings.pop(key) for key in ("layer_transfer",) if key in settings}
    made = Server(
        ModelPair(modality, slm, llm),
        public,
        test,
        transport,
        PlainAggregator(),
        ServerConfig(**initial),
        slm_layers=layers,
    )
    change(made, **settings)
    return made


def server_config(before: ServerConfig, changes: dict[str, Any]) -> ServerConfig:
    """Take the changes that are the server's or its distillation's out of a dictionary, and make them."""
    taught = {key: changes.pop(key) for key in list(changes) if key in _DISTILLATION}
    own = {key: changes.pop(key) for key in list(changes) if key in _SERVER}
    values = before.model_dump() | own
    return ServerConfig.model_validate(values | {"distillation": values["distillation"] | taught})


def change(server: Server, **changes: Any) -> None:
    """Give a server other settings, by the names of their keys; `llm`, `seed`, `run` and `uploads` too."""
    server.settings = server_config(server.settings, changes)
    if "llm" in changes:
        server.pair = dataclasses.replace(server.pair, llm=changes.pop("llm"))
    identity = {key: changes.pop(key) for key in ("seed", "run") if key in changes}
    server.identity = dataclasses.replace(server.identity, **identity)
    uploads = changes.pop("uploads", None)
    if "evaluation_batch_size" in changes:
        server.evaluation = EvaluationConfig(batch_size=changes.pop("evaluation_batch_size"))
    if "server_optimizer" in changes:
        changes["server_optimizer"] = ServerOptimizerConfig.model_validate(changes["server_optimizer"])
    assert changes.keys() <= _FEDERATION, changes
    server.federation = server.federation.model_copy(update=changes)
    if isinstance(server.aggregator, PlainAggregator):
        known = server.aggregator.uploads if uploads is None else uploads
        server.aggregator = dataclasses.replace(server.aggregator, settings=server.federation, uploads=known)


class Modelless(Modality):
    """A modality without a model, for what needs its examples alone."""

    def load_model(self, *args):
        raise NotImplementedError

    def collate(self, examples):
        raise NotImplementedError

    def logits(self, *args):
        raise NotImplementedError

    def score(self, *args):
        raise NotImplementedError
