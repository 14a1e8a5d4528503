"""The whole configuration of a run: frozen pydantic models, YAML in, JSON over the wire."""

from pydantic import model_validator

from fedcollm.config.federation import (
    FederationConfig,
    asked_clients,
)
from fedcollm.config.sections import (
    ClientConfig,
    EvaluationConfig,
    ModelConfig,
    NonNegative,
    Section,
    ServerConfig,
    TaskConfig,
)


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
        if federation.min_clients > 1 and federation.secure_aggregation.enabled:
            raise ValueError(
                f"federation.min_clients {federation.min_clients} with secure_aggregation: the number of "
                "clients that a sum needs is federation.secure_aggregation.threshold. Set that instead"
            )
        if asked and federation.min_clients > asked:
            raise ValueError(
                f"federation.min_clients {federation.min_clients}, but a round asks {asked} clients only. "
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
        if federation.secure_aggregation.enabled and 0 < asked < 3:
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
                f"aggregation: {federation.aggregation} weighs by the clients' numbers of examples, which are private; "
                "set federation.aggregation: uniform"
            )
        if privacy.level == "client" and not federation.secure_aggregation.enabled:
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
        if privacy.level == "example" and self.client.proximal:
            reasons.append(
                f"client.proximal {self.client.proximal:g} is not part of DP-SGD's step; set client.proximal: 0"
            )
        if privacy.level == "example" and self.client.max_grad_norm is not None:
            reasons.append(
                "level example clips the gradient of each example (federation.privacy.clip), not their sum; "
                "set client.max_grad_norm: null"
            )
        if reasons:
            raise ValueError("federation.privacy: " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _uploads_fit(self) -> "RunConfig":
        ranks, adapter = self.client.ranks, self.slm.adapter
        reasons = self.federation.objections
        if self.federation.aggregation == "product":
            reasons += adapter.not_plain_lora("federation.aggregation product")
        if self.federation.aggregation == "product" and self.server.layer_transfer:
            reasons.append(
                f"server.layer_transfer {self.server.layer_transfer:g} with federation.aggregation product: what is moved is "
                "the change of A and B themselves, which the product's mean makes anew. Set one of them otherwise"
            )
        if ranks is not None:
            reasons += self.federation.needs_single_updates("client.ranks", ranks, "null")
            reasons += adapter.not_plain_lora(f"client.ranks {ranks}")
        if ranks is not None and max(ranks) > adapter.rank:
            reasons.append(
                f"client.ranks {ranks} go up to {max(ranks)}, and the adapter that they are parts of has rank "
                f"{adapter.rank}. Raise slm.adapter.rank, or lower client.ranks"
            )
        if reasons:
            raise ValueError("; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _transplant_fits(self) -> "RunConfig":
        cut = self.slm.source == self.llm.source and self.llm.layers is None
        cut = cut and not self.slm.pretrain_epochs + self.llm.pretrain_epochs  # each role would be warmed up by itself
        adapters = self.slm.adapter == self.llm.adapter and self.slm.adapter.kind.lower() == "lora"
        if self.server.layer_transfer and not (cut and adapters and not self.slm.adapter.freeze_a):
            raise ValueError(
                f"server.layer_transfer {self.server.layer_transfer:g} needs an SLM that was cut from the LLM by layers "
                "(slm.source as llm.source, llm.layers null, no pretrain_epochs) and the same adapter for both, of kind lora "
                "and without freeze_a. Set those, or server.layer_transfer: 0"
            )
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
