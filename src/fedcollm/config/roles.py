"""What readers call the models of a run and the parts of a round: one table each."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """The names of one key of `RoundRecord.scores`: in a column header, in a report, in a table of one run.

    Roles that are not a mean over clients also have a name for use within a sentence (`subject`).
    """

    short: str
    label: str
    full: str
    subject: str = ""


#: Key of `RoundRecord.scores` to its names, in the order in which reports show them.
ROLES: Mapping[str, Role] = {
    "slm": Role("SLM", "Small model", "SLM (global)", "the clients’ small model"),
    "llm": Role("LLM", "Large model", "LLM", "the server’s large model"),
    "clients": Role("clients' SLMs", "Mean of clients", "SLM (clients' mean, after local tuning)"),
    "personal": Role("clients' own", "Clients’ own", "SLM (mean of what clients keep)"),
    "control": Role("control", "Control", "control, without training", "the control without training"),
}

#: The roles that are the server's own models.
MODELS: tuple[str, ...] = ("slm", "llm")

#: Key of `RoundRecord.seconds` to its name in a report, in the order in which the parts of a round happen.
PARTS: Mapping[str, str] = {"clients": "Clients", "distillation": "Distillation", "evaluation": "Evaluation"}
