"""The configuration of a run, as frozen pydantic models that are read from YAML and sent as JSON."""

from fedcollm.config.base import Section
from fedcollm.config.cleaning import CleaningConfig
from fedcollm.config.control import AskedStatistics, ControlConfig, PseudoLabelConfig, StatisticsConfig
from fedcollm.config.data import FormatConfig, PartitionConfig, TaskConfig
from fedcollm.config.federation import (
    DeadlinesConfig,
    FederationConfig,
    PrivacyConfig,
    SecureAggregationConfig,
    ServerOptimizerConfig,
    asked_clients,
)
from fedcollm.config.models import AdapterConfig, HealingConfig, ModelConfig
from fedcollm.config.run import SCHEMA_VERSION, RunConfig
from fedcollm.config.training import ClientConfig, DistillationConfig, EvaluationConfig, ServerConfig, TrainingConfig

__all__ = [
    "SCHEMA_VERSION",
    "AdapterConfig",
    "AskedStatistics",
    "CleaningConfig",
    "ClientConfig",
    "ControlConfig",
    "DeadlinesConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "FederationConfig",
    "FormatConfig",
    "HealingConfig",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "PseudoLabelConfig",
    "RunConfig",
    "Section",
    "SecureAggregationConfig",
    "ServerConfig",
    "ServerOptimizerConfig",
    "StatisticsConfig",
    "TaskConfig",
    "TrainingConfig",
    "asked_clients",
]
