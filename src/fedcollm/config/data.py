"""Sections of a run's configuration: the data, and how it is split."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section


class PartitionConfig(Section):
    """How the private examples are divided among clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural", "quantity", "pooled"] = "dirichlet"
    """iid, dirichlet (label skew), shards, natural (own groups), quantity (sizes grow) or pooled (centralized)"""
    alpha: PositiveFloat = 0.3
    """concentration of `dirichlet`: smaller is more skewed"""
    shards: Positive = 2
    """shards per client, for `shards`"""
    with_public: bool = False
    """`pooled` only: the one client holds the labelled public part too"""

    @model_validator(mode="after")
    def _public_part_only_if_pooled(self) -> "PartitionConfig":
        if self.with_public and self.kind != "pooled":
            raise ValueError(f"with_public needs kind: pooled, not {self.kind}")
        return self


class FormatConfig(Section):
    """How rows of the user's own JSONL, CSV or Parquet become prompts and answers."""

    prompt: str
    """template with {column} fields, such as "{diagnosis}:" """
    answer: str
    """name of the column that holds the right answer"""
    choices: list[str] | str | None = None
    """list of choices, or the column that holds them; null: free completion"""
    group: str | None = None
    """column of the natural client id"""


class TaskConfig(Section):
    """The data and how it is split."""

    name: str = "icd10"
    """icd10, arc_easy, arc_challenge, openbookqa, commonsense_qa, professions, digits, or custom (your own files)"""
    path: Path | None = None
    """directory with train, dev, test files, for tasks read from files; null: the hub or the package"""
    format: FormatConfig | None = None
    """columns and templates of your own files (task name: custom)"""
    clients: Positive = 4
    """number of clients K"""
    partition: PartitionConfig = PartitionConfig()
    private_size: Positive = 320
    """examples per client (the mean, where the partition makes sizes unequal)"""
    public_size: NonNegative = 320
    """labelled examples of the server's public set D_a"""
    unlabelled_size: NonNegative = 0
    """unlabelled examples of D_a: used for distillation only"""
    test_size: Positive = 300
    """examples for scoring"""
