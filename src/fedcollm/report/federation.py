"""Who took part in a run: the server's models, the clients with their data, and what travelled between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from fedcollm.config import ModelConfig
from fedcollm.config.roles import MODELS, ROLES
from fedcollm.messages import RoundRecord, readable
from fedcollm.report.formats import amount, large, natural
from fedcollm.report.runs import Run

#: How the reason begins for which a client counts as late; for any other reason it counts as lost.
_LATE = "no answer"


@dataclass(frozen=True)
class Model:
    """One of the server's models.

    Attributes:
        role: `slm`, `llm` or `control`.
        label: what it is, such as `Small model`.
        name: its name.
        size: its number of parameters, in words; empty if unknown.
    """

    role: str
    label: str
    name: str
    size: str


@dataclass(frozen=True)
class Member:
    """One client.

    Attributes:
        name: its name.
        examples: number of its private examples; None if the server does not know it.
        taken: number of rounds with its update.
        late: number of rounds in which its answer did not come in time.
        lost: number of rounds in which it was lost for another reason.
    """

    name: str
    examples: int | None
    taken: int
    late: int = 0
    lost: int = 0

    @property
    def size(self) -> str:
        """Return the number of its examples in words."""
        return "" if self.examples is None else amount(self.examples, "example")

    @property
    def state(self) -> str:
        """Return in how many rounds it was late or lost, in words; empty if it never was."""
        kinds = [f"{kind} in {amount(n, 'round')}" for kind, n in (("late", self.late), ("lost", self.lost)) if n]
        return ", ".join(kinds)


@dataclass(frozen=True)
class Federation:
    """The parties of a run.

    Attributes:
        models: the server's models.
        members: the clients, in natural order.
        labelled: number of labelled public examples.
        unlabelled: number of unlabelled public examples.
        bytes_down: bytes that a client receives per round (the largest of all rounds).
        bytes_up: bytes that a client sends per round (the largest of all rounds).
        secure: whether updates are aggregated securely.
        epsilon: ε spent so far; None without differential privacy.
        delta: the δ that belongs to it.
    """

    models: Sequence[Model]
    members: Sequence[Member]
    labelled: int = 0
    unlabelled: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    secure: bool = False
    epsilon: float | None = None
    delta: float | None = None


def federation_of(run: Run) -> Federation | None:
    """Return the parties of a run; None if it has no clients, or if it holds the data of all of them in one place."""
    names = _ids(run)
    if not names or run.config.task.partition.kind == "pooled":
        return None
    settings, data = run.config.federation, run.data
    held: Mapping[str, Mapping[str, int]] = data.get("clients", {})
    spent = [record.epsilon for record in run.records if record.epsilon is not None]
    return Federation(
        models_of(run),
        [_member(name, held.get(name), run.records) for name in names],
        sum(data.get("public", {}).values()),
        data.get("unlabelled", 0),
        max((record.bytes_down for record in run.records), default=0),
        max((record.bytes_up for record in run.records), default=0),
        settings.secure_aggregation.enabled,
        spent[-1] if spent else None,
        settings.privacy.delta if settings.privacy else None,
    )


def _ids(run: Run) -> list[str]:
    """Return the clients whose data is known, that took part, or that were lost."""
    wanted = run.config.federation.participants
    held = [name for name in run.data.get("clients", {}) if wanted is None or name in wanted]
    told = [name for record in run.records for name in (*record.participants, *record.lost)]
    return sorted({*held, *told}, key=natural)


def _member(name: str, held: Mapping[str, int] | None, records: Sequence[RoundRecord]) -> Member:
    reasons = [record.lost[name] for record in records if name in record.lost]
    late = sum(is_late(reason) for reason in reasons)
    taken = sum(name in record.participants for record in records if record.round > 0)
    size = None if held is None else sum(held.values())
    return Member(client_name(name), size, taken, late, len(reasons) - late)


def is_late(reason: str) -> bool:
    """Return whether a client that was lost for this reason did not answer in time.

    >>> is_late("no answer within 60 s"), is_late("tensor a is not finite")
    (True, False)
    """
    return reason.startswith(_LATE)


def client_name(name: str) -> str:
    """Return the name of a client as a reader should see it.

    >>> client_name("3"), client_name("St. Mary")
    ('Client 3', 'St. Mary')
    """
    return f"Client {name}" if name.isdecimal() else readable(name)


def models_of(run: Run) -> list[Model]:
    """Return the models that take part in a run; of a control, which has none, the control itself."""
    if run.config.control is not None:
        return [Model("control", ROLES["control"].label, "closed form", "nothing is trained")]
    sizes = run.environment.get("parameters", {})
    sections = {"slm": run.config.slm, "llm": run.config.llm}
    known = [role for role in MODELS if role in sizes or any(role in record.scores for record in run.records)]
    return [
        Model(role, ROLES[role].label, model_name(sections[role]), _size(sizes.get(role, {})))
        for role in reversed(MODELS)
        if role in (known or MODELS)
    ]


def _size(sizes: Mapping[str, int]) -> str:
    if not sizes.get("base"):
        return ""
    words = f"{large(sizes['base'])} parameters"
    return f"{words}, {large(sizes['adapter'])} tuned" if sizes.get("adapter") else words


def model_name(model: ModelConfig) -> str:
    """Return the name of a model, with the number of its layers if some were cut.

    >>> model_name(ModelConfig(source="/models/Qwen2.5-0.5B.gguf", layers=10))
    'Qwen2.5-0.5B, 10 layers'
    """
    path = PurePath(model.source)
    name = path.name.removesuffix(".gguf") if path.is_absolute() else model.source
    kept = model.layers if isinstance(model.layers, int) or model.layers is None else len(model.layers)
    return readable(name or model.source) + ("" if kept is None else f", {amount(kept, 'layer')}")
