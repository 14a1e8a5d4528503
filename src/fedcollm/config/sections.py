"""Sections of a run's configuration: data, models, and what client and server do with them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PartitionConfig(Section):
    """How the private pool is cut into clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural", "quantity", "pooled"] = "dirichlet"
    """iid, dirichlet (label skew), shards, natural (own groups), quantity (sizes grow) or pooled (centralized)"""
    alpha: PositiveFloat = 0.3
    """concentration of `dirichlet`: smaller is more skewed"""
    shards: Positive = 2
    """shards a client, for `shards`"""
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
    """examples a client (the mean, where the partition makes sizes unequal)"""
    public_size: NonNegative = 320
    """labelled examples of the server's public set D_a"""
    unlabelled_size: NonNegative = 0
    """unlabelled examples of D_a: used for distillation only"""
    test_size: Positive = 300
    """examples for scoring"""


class AdapterConfig(Section):
    """A PEFT adapter."""

    kind: str = "lora"
    """lora, dora, ia3, or any PEFT method by its PEFT name"""
    rank: Positive = 8
    """rank r of low-rank methods"""
    alpha: PositiveFloat = 16
    """scale α of low-rank methods"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout inside the adapter"""
    targets: Literal["auto", "all-linear"] | list[str] = "auto"
    """names of the modules that get an adapter; auto: every linear layer but the head"""
    options: dict[str, Any] = Field(default_factory=dict)
    """further fields of the method's PEFT config"""
    freeze_a: bool = False
    """kind lora: keep A at its random start and train and send B only (FFA-LoRA): a mean of adapters is then exact"""

    def not_plain_lora(self, what: str) -> list[str]:
        """Why something that takes LoRA's A and B apart can't be had with this adapter."""
        if self.kind.lower() != "lora" or self.options.get("use_dora"):
            return [f"{what} needs LoRA's A and B alone. Set slm.adapter.kind: lora, without use_dora"]
        if self.freeze_a:
            return [f"{what} needs both A and B to travel. Set slm.adapter.freeze_a: false (with it a mean is exact)"]
        return []


class ModelConfig(Section):
    """A frozen base model and its adapter."""

    source: str = "smollm2-135m"
    """hub id, directory, .gguf file, or the name of a shipped model"""
    layers: Positive | None = None
    """keep this many evenly spread layers, first and last included; null: all"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen base; auto: bfloat16 where the hardware multiplies it fast, else float32"""
    attention: Literal["auto", "grouped", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """attention implementation; auto: grouped (ours) on a CPU where the model qualifies, else transformers' choice"""
    pretrain_epochs: NonNegative = 0
    """epochs of full training on the public part before the adapter is added (models without pretrained weights)"""
    adapter: AdapterConfig = AdapterConfig()


class ClientConfig(Section):
    """Local fine-tuning."""

    epochs: Positive = 1
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 1.0e-3
    proximal: Weight = 0.0
    """μ of FedProx: adds μ/2 ‖θ_k − θ‖² to a client's loss; 0: none"""
    max_grad_norm: PositiveFloat | None = None
    """a step's gradient is scaled down to this L2 norm where it is longer; null: never"""
    ranks: Annotated[list[Positive], Field(min_length=1)] | None = None
    """ranks of the clients' adapters, in turn: client k trains and sends the first ranks[k] components; null: all"""
    personal: bool = False
    """after the last round each client tunes the final adapter once more, and keeps the result"""

    def rank(self, position: int) -> int | None:
        """The rank of the client at a position in the federation's order; None: the whole adapter's."""
        return None if self.ranks is None else self.ranks[position % len(self.ranks)]


class DistillationConfig(Section):
    """Mutual distillation (eq. 4-6)."""

    weight: Weight = 1.0
    """λ of the SLM's loss, and of the LLM's unless llm_weight is set; 0: cross-entropy on D_a only"""
    llm_weight: Weight | None = None
    """λ of the LLM's loss; 0: one-way distillation from LLM to SLM; null: same as weight"""
    temperature: PositiveFloat = 1.0
    """τ"""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl"] = "forward_kl"
    """forward_kl: KL(teacher ‖ student); reverse_kl: KL(student ‖ teacher); jensen_shannon; skewed ones (DistiLLM)"""
    teach_where_better: bool = False
    """teach a role only where the other one knows better (FedMKT's DualMinCE): by the label, else by lower entropy"""
    warmup_rounds: NonNegative = 0
    """rounds over which λ grows linearly to its full weight; 0: full from the first round on"""
    across_tokenizers: bool = False
    """allow an LLM and an SLM with different tokenizers: they teach each other over the tokens that they share"""


class ServerConfig(Section):
    """The server's work on the public set D_a."""

    epochs: NonNegative = 1
    """0: no distillation (FedAvg)"""
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 1.0e-3
    max_grad_norm: PositiveFloat | None = None
    """each model's gradient in a step is scaled down to this L2 norm where it is longer; null: never"""
    distillation: DistillationConfig = DistillationConfig()
    layer_transfer: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the clients' mean change that goes into the LLM's own layers, where the SLM was cut from it by layers"""


class EvaluationConfig(Section):
    """When and how models are scored."""

    every: Positive = 1
    """score after every n-th round (the last round is always scored)"""
    clients: Literal["every", "last", "never"] = "every"
    """when the clients' own tuned SLMs are scored: in every scored round, in the last one only, or never"""
    batch_size: Positive = 32

    def scores(self, index: int, rounds: int) -> bool:
        """Whether the models are scored after a round, 1 being the first of so many."""
        return index == rounds or index % self.every == 0

    def scores_clients(self, index: int, rounds: int) -> bool:
        """Whether the clients' own tuned SLMs are scored in that round too."""
        asked = self.clients == "every" or (self.clients == "last" and index == rounds)
        return asked and self.scores(index, rounds)
