"""The complete configuration of a run."""

from typing import Any, Literal, cast

from pydantic import field_validator, model_validator

from fedcollm.config import rules
from fedcollm.config.base import NonNegative, Section
from fedcollm.config.control import AskedStatistics, ControlConfig, buckets_for
from fedcollm.config.data import TaskConfig
from fedcollm.config.federation import FederationConfig
from fedcollm.config.models import ModelConfig
from fedcollm.config.training import ClientConfig, EvaluationConfig, ServerConfig

#: Increased whenever the keys change so that older configurations can no longer be read.
SCHEMA_VERSION = 2


class RunConfig(Section):
    """Everything that a run depends on."""

    schema_version: Literal[2] = SCHEMA_VERSION
    """version of the configuration format; fedcollm refuses a configuration of another version"""
    name: str = "icd10"
    """name of the run; its output directory is runs/NAME by default"""
    seed: NonNegative = 0
    """seed of everything random: data split, initial weights, batch order, client sampling"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: CUDA if available, otherwise the CPU"""
    log_steps: bool = False
    """log the optimizer steps (except those of DP-SGD) to steps.jsonl: losses, learning rate, speed, gradient norms"""
    task: TaskConfig = TaskConfig()
    llm: ModelConfig = ModelConfig()
    slm: ModelConfig = ModelConfig(layers=10)
    client: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    control: ControlConfig | None = None
    """a control solved in closed form, from sums over the clients, instead of training; null: none"""

    @property
    def statistics(self) -> AskedStatistics:
        """The statistics that clients send once. It depends on the configuration alone, never on a client's data."""
        labels, named = self.server.pseudo_labels, self.federation.participants
        clients = (self.task.clients or 3) if named is None else len(named)
        buckets = buckets_for(clients * self.task.private_size) if self.federation.profile else 0
        return AskedStatistics(self.control or (labels if labels and labels.asks_clients else None), buckets)

    @model_validator(mode="before")
    @classmethod
    def _same_schema(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        version: object = cast("dict[str, Any]", values).get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version {version!r}: this version of fedcollm reads schema version {SCHEMA_VERSION}. Create a "
                "new configuration with `fedcollm init`, or use the version of fedcollm that wrote this one"
            )
        return cast("dict[str, Any]", values)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not name.strip() or name in (".", "..") or any(sign in "/\\" or not sign.isprintable() for sign in name):
            raise ValueError("give a name without slashes and control characters, since a directory is called so")
        return name

    @model_validator(mode="after")
    def _combination_is_possible(self) -> "RunConfig":
        if reasons := rules.refusals(self):
            raise ValueError("\n".join(reasons))
        return self
