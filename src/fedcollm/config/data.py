"""The `task` section of the configuration: the data and how it is split."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section


class PartitionConfig(Section):
    """How the private examples are divided among the clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural", "quantity", "pooled"] = "dirichlet"
    """iid, dirichlet (label skew), shards (few labels), natural (groups), quantity (uneven), pooled (one client)"""
    alpha: PositiveFloat = 0.3
    """dirichlet only: concentration α; the smaller it is, the more the clients' labels differ"""
    shards: Positive = 2
    """shards only: number of shards per client"""
    with_public: bool = False
    """pooled only: whether the one client also holds the labelled public examples"""

    @model_validator(mode="after")
    def _public_part_only_if_pooled(self) -> "PartitionConfig":
        if self.with_public and self.kind != "pooled":
            raise ValueError(f"with_public needs kind: pooled, not {self.kind}")
        return self


class FormatConfig(Section):
    """How the rows of your own JSONL, CSV or Parquet files become prompts and answers."""

    prompt: str
    """template of the prompt, with column names in braces, such as "{diagnosis}:" """
    answer: str
    """column that holds the right answer"""
    choices: list[str] | str | None = None
    """list of the possible answers, or the column that holds them; null: the model completes the prompt freely"""
    group: str | None = None
    """column that says which client (hospital, bank, ...) a row belongs to; needed for partition kind natural"""


class TaskConfig(Section):
    """The data and how it is split."""

    name: str = "icd10"
    """arc_easy, arc_challenge, commonsense_qa, digits, icd10, openbookqa, professions, spoken_words, custom (yours)"""
    path: Path | None = None
    """your file, or a directory with a train file and, if you like, test (or dev), public and unlabelled files"""
    format: FormatConfig | None = None
    """custom only: prompt, answer, choices and group, which say how rows become examples"""
    clients: Positive = 4
    """number of clients K"""
    partition: PartitionConfig = PartitionConfig()
    private_size: Positive = 320
    """private training examples per client; the mean, if the partition makes the clients unequal"""
    public_size: NonNegative = 320
    """labelled examples in the server's public set D_a"""
    unlabelled_size: NonNegative = 0
    """unlabelled examples in D_a, for distillation, and for training too if pseudo_labels label them"""
    test_size: Positive = 300
    """examples for evaluation, which nobody trains on"""
