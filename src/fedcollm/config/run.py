"""The whole configuration of a run."""

from typing import Any, Literal

from pydantic import model_validator

from fedcollm.config import rules
from fedcollm.config.base import NonNegative, Section
from fedcollm.config.data import TaskConfig
from fedcollm.config.federation import FederationConfig
from fedcollm.config.models import ModelConfig
from fedcollm.config.training import ClientConfig, EvaluationConfig, ServerConfig

#: Raised with every change of keys that older configurations can't be read with.
SCHEMA_VERSION = 2


class RunConfig(Section):
    """Everything that a run depends on."""

    schema_version: Literal[2] = SCHEMA_VERSION
    """version of these keys; a configuration of another version is refused"""
    name: str = "icd10"
    """name of the run; its directory is runs/NAME by default"""
    seed: NonNegative = 0
    """seed of data split, initial values, batch order and client sampling"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1, ..."""
    log_steps: bool = False
    """write every optimizer step to steps.jsonl: losses, learning rate, rows per second, gradient norms"""
    task: TaskConfig = TaskConfig()
    llm: ModelConfig = ModelConfig()
    slm: ModelConfig = ModelConfig(layers=10)
    client: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _same_schema(cls, values: Any) -> Any:
        version = values.get("schema_version", SCHEMA_VERSION) if isinstance(values, dict) else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version {version}: this version of fedcollm reads {SCHEMA_VERSION}. Make the configuration "
                "anew with `fedcollm init`, or use the version of fedcollm that wrote it"
            )
        return values

    @model_validator(mode="after")
    def _combination_is_possible(self) -> "RunConfig":
        if reasons := rules.refusals(self):
            raise ValueError("; ".join(reasons))
        return self
