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
    """How the rows of your own JSONL, CSV or Parquet files become prompts and answers, or images and classes.

    Without prompt, the data is images; without prompt and image, they are in a folder of class folders.
    """

    prompt: str | None = None
    """text: template of the prompt, with column names in braces, such as "{diagnosis}:" """
    image: str | None = None
    """images: column with the path of an image, relative to its file; null, without prompt: train/CLASS/ has images"""
    answer: str | None = None
    """column that holds the right answer, or the class of an image; null for class folders"""
    choices: list[str] | str | None = None
    """possible answers, or their column; null: free completion of a prompt, or the classes of the training images"""
    group: str | None = None
    """column that says which client (hospital, bank, ...) a row belongs to; needed for partition kind natural"""

    @model_validator(mode="after")
    def _text_or_images(self) -> "FormatConfig":
        if self.prompt is not None and self.image is not None:
            raise ValueError(f"prompt is for text and image {self.image!r} for images. Remove one of them")
        if (self.prompt is not None or self.image is not None) and self.answer is None:
            raise ValueError("answer is missing. Set it to the column that holds the right answer")
        if self.is_folders and (self.answer is not None or self.group is not None):
            raise ValueError(
                "without prompt (text) or image (a column of image files), images are in class folders, and there is "
                "no column for answer or group. Set prompt or image, or remove answer and group"
            )
        if self.kind == "image_files" and isinstance(self.choices, str):
            raise ValueError(f"choices {self.choices!r} is a column, but all images share their classes. Give a list")
        return self

    @property
    def kind(self) -> Literal["text", "image_files"]:
        """What an example is: a prompt with its answer, or an image with its class."""
        return "image_files" if self.prompt is None else "text"

    @property
    def is_folders(self) -> bool:
        """Whether the data is a folder of class folders."""
        return self.prompt is None and self.image is None

    @property
    def is_free(self) -> bool:
        """Whether answers are free text instead of one of several choices."""
        return self.prompt is not None and self.choices is None


class TaskConfig(Section):
    """The data and how it is split."""

    name: str = "icd10"
    """arc_easy, arc_challenge, commonsense_qa, digits, icd10, openbookqa, professions, spoken_words, custom (yours)"""
    path: Path | None = None
    """your file, or a directory with a train file (or folder) and, if you like, test (or dev), public, unlabelled"""
    format: FormatConfig | None = None
    """custom only: prompt or image, answer, choices and group, which say how rows become examples"""
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
