"""Tables and lines for the terminal, as plain text for the consoles of `terminal`, which interpret no markup."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fedcollm.cli.terminal import new_table
from fedcollm.config.roles import MODELS, PARTS, ROLES
from fedcollm.config.words import start_in_words
from fedcollm.messages import RoundRecord
from fedcollm.printing import printable
from fedcollm.report import tables
from fedcollm.report.compared_tables import all_tables
from fedcollm.report.formats import byte_count, share
from fedcollm.report.tables import adapter_share
from fedcollm.runs import directory as directories

if TYPE_CHECKING:
    from fedcollm.experiments.comparison import Comparison
    from fedcollm.runs.harness import Parity
    from fedcollm.runs.shrink import ShrinkReport

#: All roles, with the LLM last.
_LLM_LAST = sorted(ROLES, key=lambda role: role == "llm")


def round_line(record: RoundRecord) -> str:
    """Return the record of a round as one line, in columns of fixed width."""
    scored = [role for role in _LLM_LAST if role in record.scores]
    scores = [f"{role.upper() if role in MODELS else role} {record.scores[role]:.3f}" for role in scored]
    parts = {part: record.seconds.get(part, 0.0) for part in PARTS}
    spent = ", ".join(f"{part} {value:.0f}" for part, value in parts.items() if value)
    when = f"{sum(parts.values()):.0f} s ({spent})" if spent else "before training"
    lost = "; ".join(f"client {client}: {reason}" for client, reason in record.lost.items())
    epsilon = "" if record.epsilon is None else f"  ε {record.epsilon:.3g}"
    line = f"round {record.round:2}  {'  '.join(scores) or 'not scored'}{epsilon}  {when}"
    return printable(line + (f"  lost {lost}" if lost else ""))


def summary_table(directory: Path) -> Table:
    """Return the first and final scores, bytes, time and memory of a finished run."""
    records = directories.read_records(directory)
    last = records[-1]
    data: dict[str, Any] = directories.read_json(directory, directories.DATA) or {}
    metric = data.get("metric", "accuracy")
    title = f"{directory}: {metric} after {last.round} round{'' if last.round == 1 else 's'}"
    table = new_table(title, "", start_in_words(directories.read_config(directory)), "final", "gain")
    _add_scores(table, records[0], last)
    table.add_section()
    sends = directories.read_config(directory).control is None
    part = adapter_share(directories.read_json(directory, directories.ENVIRONMENT)) if sends else None
    _add_bytes(table, last, part)
    _add_seconds(table, records)
    table.add_row("peak memory", "", byte_count(last.peak_memory_bytes), "")
    return table


def _add_scores(table: Table, first: RoundRecord, last: RoundRecord) -> None:
    for role in _LLM_LAST:
        if role in last.scores:
            start, final = first.scores.get(role, first.scores.get("slm")), last.scores[role]
            before, gain = ("–", "–") if start is None else (f"{start:.3f}", f"{final - start:+.3f}")
            table.add_row(ROLES[role].full, before, f"{final:.3f}", gain)


def _add_bytes(table: Table, last: RoundRecord, part: float | None) -> None:
    if not last.bytes_up:
        return
    words = "" if part is None else f"{share(part)} of parameters"
    table.add_row("up / down, per client and round", byte_count(last.bytes_up), byte_count(last.bytes_down), words)


def _add_seconds(table: Table, records: Sequence[RoundRecord]) -> None:
    measured = [part for part in PARTS if any(part in record.seconds for record in records)]
    parts = {part: sum(record.seconds.get(part, 0.0) for record in records) for part in measured}
    for part, seconds in parts.items():
        table.add_row(f"time: {part}", "", f"{seconds:.0f} s", f"{seconds / (sum(parts.values()) or 1):.0%}")


def comparison_tables(comparison: "Comparison") -> list[Table]:
    """Return the paper's tables."""
    return [_plain_table(table) for table in all_tables(comparison.tasks)]


def _plain_table(source: tables.Table) -> Table:
    """Return a table of the report as a table for the terminal."""
    table = new_table(source.caption, *source.header)
    for row in source.rows:
        table.add_row(*row)
    return table


def parity_table(role: str, parity: "Parity") -> Table:
    """Return the scores by lm-evaluation-harness and by fedcollm's own scorer."""
    table = new_table(f"{role} on {parity.examples} test examples of {parity.task}", "", *parity.harness)
    for name, means in ((f"lm-evaluation-harness {parity.version}", parity.harness), ("fedcollm", parity.ours)):
        table.add_row(name, *(f"{means[metric]:.4f}" for metric in parity.harness))
    table.add_section()
    table.add_row("examples whose picks differ", *map(str, parity.differing.values()))
    lines = [f"log-likelihoods in {parity.dtype} differ by up to {parity.largest_difference:.2g} nats"]
    if any(parity.differing.values()) and parity.dtype != "float32":
        lines.append(
            "near ties are decided either way, as they are with another batch size; in float32 there are hardly any"
        )
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def shrink_table(report: "ShrinkReport", scores: Mapping[str, float]) -> Table:
    """Return how well a model fits a held-out text before and after cutting and healing, and its zero-shot scores."""
    header = ["", "parameters", "KL per token (nats)", "perplexity", *(["zero-shot"] if scores else [])]
    table = new_table(f"kept layers: {', '.join(map(str, report.layers))}", *header)
    for name, fit in (("whole", report.whole), ("cut", report.cut), ("healed", report.healed)):
        size = report.parameters["whole" if name == "whole" else "cut"]
        kl = "–" if fit.kl is None else f"{fit.kl:.3f}"
        score = [f"{scores[name]:.3f}" if name in scores else "–"] if scores else []
        table.add_row(name, f"{size / 1e6:.1f} M", kl, f"{fit.perplexity:,.0f}", *score)
    return table
