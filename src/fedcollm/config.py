"""The whole configuration of a run: frozen pydantic models, YAML in, JSON over the wire."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def asked_clients(count: int, fraction: float) -> int:
    """How many of `count` clients a round asks.

    >>> [asked_clients(4, fraction) for fraction in (1.0, 0.5, 0.01)]
    [4, 2, 1]
    """
    return min(count, max(1, round(fraction * count)))


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
    """icd10, arc_easy, arc_challenge, openbookqa, commonsense_qa, digits, or custom (your own files)"""
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
    options: dict[str, Any] = {}
    """further fields of the method's PEFT config"""


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
    warm_up: NonNegative = 0
    """epochs of full training on the public part before the adapter is added (models without pretrained weights)"""
    adapter: AdapterConfig = AdapterConfig()


class ClientConfig(Section):
    """Local fine-tuning."""

    epochs: Positive = 1
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 1.0e-3


class DistillationConfig(Section):
    """Mutual distillation (eq. 4-6)."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """λ of the SLM's loss, and of the LLM's unless llm_weight is set; 0: cross-entropy on D_a only"""
    llm_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """λ of the LLM's loss; 0: one-way distillation from LLM to SLM; null: same as weight"""
    temperature: PositiveFloat = 1.0
    """τ"""
    divergence: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    """forward_kl: KL(teacher ‖ student); reverse_kl: KL(student ‖ teacher)"""


class ServerConfig(Section):
    """The server's work on the public set D_a."""

    epochs: NonNegative = 1
    """0: no distillation (FedAvg)"""
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 1.0e-3
    distillation: DistillationConfig = DistillationConfig()


class MaskingConfig(Section):
    """Secure aggregation's numbers, which all parties must agree on."""

    threshold: Positive | None = None
    """clients needed to open a sum, more than 2/3 of those asked in a round; null: the smallest such number"""
    value_range: PositiveFloat = 1.0
    """largest change of a parameter in a round; a larger one is an error (privacy at level client has its own range)"""
    largest_weight: Positive = 4096
    """largest number of examples of a client"""
    rehearse: bool = False
    """without secure_aggregation: round as it does, so that a run gives bit for bit what it gives with it"""


class DeadlinesConfig(Section):
    """How long the server of a deployment waits, in seconds; a client that is later is lost for the round."""

    training: PositiveFloat = 3600.0
    """for a client's local training"""
    phase: PositiveFloat = 120.0
    """for a client's answer in a later phase of secure aggregation"""
    absence: PositiveFloat = 60.0
    """for a client that is not connected to come back"""


class PrivacyConfig(Section):
    """Differential privacy: what a client's update must hide, and how well. All parties must agree on it."""

    level: Literal["client", "example"]
    """what is hidden: client: a client's whole part; example: every single example"""
    clip: PositiveFloat
    """largest L2 norm of a client's change (level client) or of an example's gradient (level example)"""
    noise_multiplier: PositiveFloat
    """standard deviation of the noise in a sum, as a multiple of clip"""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """δ, the chance that the guarantee may fail: well below 1 / number of clients or examples"""
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """level example: the chance q of every example to be in a step's batch; a round has epochs / q steps"""

    @property
    def objections(self) -> list[str]:
        """What is wrong with the section by itself."""
        if self.level == "client" and self.sampling_rate is not None:
            return [f"sampling_rate {self.sampling_rate:g} means nothing at level client: leave it out"]
        if self.level == "example" and self.sampling_rate is None:
            return ["level example needs sampling_rate, such as batch_size / private_size"]
        return []


class FederationConfig(Section):
    """Rounds, sampling and aggregation."""

    rounds: Positive = 5
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the clients drawn in each round"""
    participants: list[str] | None = None
    """restrict the federation to these client ids; []: no clients (server only); null: all"""
    aggregation: Literal["mean", "uniform"] = "mean"
    """mean: weighted by number of examples; uniform: the paper's 1/K"""
    minimum_clients: Positive = 1
    """a round with fewer updates fails; under secure aggregation masking.threshold says this"""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    largest_change: PositiveFloat = 1000.0
    """bound of the L2 norm of a client's change, where the server sees it; a larger change is refused"""
    secure_aggregation: bool = False
    """true: the server learns the sum of the clients' changes only, and of a single client nothing"""
    masking: MaskingConfig = MaskingConfig()
    privacy: PrivacyConfig | None = None
    """differential privacy: level (client or example), clip, noise_multiplier, delta, sampling_rate; null: none"""


class EvaluationConfig(Section):
    """When and how models are scored."""

    every: Positive = 1
    """score after every n-th round (the last round is always scored)"""
    clients: Literal["every", "last"] = "every"
    """when the clients' own tuned SLMs are scored: in every scored round, or in the last one only"""
    batch_size: Positive = 32


class RunConfig(Section):
    """Everything that a run depends on."""

    name: str = "icd10"
    seed: NonNegative = 0
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1, ..."""
    task: TaskConfig = TaskConfig()
    llm: ModelConfig = ModelConfig()
    slm: ModelConfig = ModelConfig(layers=10)
    client: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _reachable_minimum(self) -> "RunConfig":
        federation, asked = self.federation, self._asked()
        if federation.minimum_clients > 1 and federation.secure_aggregation:
            raise ValueError(
                f"federation.minimum_clients {federation.minimum_clients} with secure_aggregation: the number of "
                "clients that a sum needs is federation.masking.threshold. Set that instead"
            )
        if asked and federation.minimum_clients > asked:
            raise ValueError(
                f"federation.minimum_clients {federation.minimum_clients}, but a round asks {asked} clients only. "
                "Lower it, or raise task.clients or federation.fraction"
            )
        return self

    def _asked(self) -> int:
        """Number of clients that a round asks."""
        federation = self.federation
        clients = self.task.clients if federation.participants is None else len(federation.participants)
        return asked_clients(clients, federation.fraction) if clients else 0

    @model_validator(mode="after")
    def _secure_sum_of_three(self) -> "RunConfig":
        federation, asked = self.federation, self._asked()
        if federation.secure_aggregation and 0 < asked < 3:
            raise ValueError(
                f"federation.secure_aggregation needs at least 3 clients in a round, and here {asked} would be asked: "
                "of a sum of two, each learns the other's part. Raise task.clients or federation.fraction"
            )
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> "RunConfig":
        federation, privacy = self.federation, self.federation.privacy
        if privacy is None:
            return self
        reasons = privacy.objections
        if federation.aggregation != "uniform":
            reasons.append(
                "aggregation: mean weighs by the clients' numbers of examples, which are private; "
                "set federation.aggregation: uniform"
            )
        if privacy.level == "client" and not federation.secure_aggregation:
            reasons.append(
                "at level client each client adds its share of the noise only, too little for a server that sees "
                "single updates; set federation.secure_aggregation: true"
            )
        adapter = self.slm.adapter
        if privacy.level == "example" and adapter.kind.lower() != "lora":
            reasons.append(
                f"level example needs gradients of single examples, which slm.adapter.kind: {adapter.kind} does not "
                "give; set slm.adapter.kind: lora"
            )
        if reasons:
            raise ValueError("federation.privacy: " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _distillation_has_data(self) -> "RunConfig":
        if self.server.epochs and not self.task.public_size + self.task.unlabelled_size:
            raise ValueError(
                "server.epochs > 0 needs public data: set task.public_size or task.unlabelled_size, "
                "or server.epochs: 0 (FedAvg)"
            )
        if self.federation.participants == [] and not self.server.epochs:
            raise ValueError("federation.participants: [] with server.epochs: 0 trains nothing")
        return self
