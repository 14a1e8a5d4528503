"""The whole configuration of a run: frozen pydantic models, YAML in, JSON over the wire."""

from fedcollm.config.federation import (
    DeadlinesConfig,
    FederationConfig,
    PrivacyConfig,
    SecureAggregationConfig,
    ServerOptimizerConfig,
    asked_clients,
)
from fedcollm.config.run import RunConfig
from fedcollm.config.sections import (
    AdapterConfig,
    ClientConfig,
    DistillationConfig,
    EvaluationConfig,
    FormatConfig,
    ModelConfig,
    NonNegative,
    PartitionConfig,
    Section,
    ServerConfig,
    TaskConfig,
)

__all__ = [
    "AdapterConfig",
    "ClientConfig",
    "DeadlinesConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "FederationConfig",
    "FormatConfig",
    "ModelConfig",
    "NonNegative",
    "PartitionConfig",
    "PrivacyConfig",
    "RunConfig",
    "Section",
    "SecureAggregationConfig",
    "ServerConfig",
    "ServerOptimizerConfig",
    "TaskConfig",
    "asked_clients",
]
