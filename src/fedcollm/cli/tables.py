"""Tables and lines for the terminal, as plain text for the consoles of `terminal`, which interpret no markup."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fedcollm.config import RunConfig
from fedcollm.config.roles import MODELS, PARTS, ROLES
from fedcollm.config.words import facts_in_words, inputs_in_words, settings_in_words
from fedcollm.messages import RoundRecord
from fedcollm.report import tables
from fedcollm.report.compared_tables import all_tables
from fedcollm.report.formats import byte_count, duration
from fedcollm.report.tables import full_model_bytes
from fedcollm.runs import directory as directories

if TYPE_CHECKING:
    from fedcollm.experiments.comparison import Comparison
    from fedcollm.runs.estimate import Cost
    from fedcollm.runs.harness import Parity
    from fedcollm.runs.profile import Measured
    from fedcollm.runs.shrink import ShrinkReport

NOT_COVERED = "not covered"

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
    return line + (f"  lost {lost}" if lost else "")


def summary_table(directory: Path) -> Table:
    """Return the zero-shot and final scores, bytes, time and memory of a finished run."""
    records = directories.read_records(directory)
    last = records[-1]
    table = Table(title=f"{directory}: {last.round} round{'' if last.round == 1 else 's'}", title_justify="left")
    for column in ("", "zero-shot", "final", "gain"):
        table.add_column(column, justify="left" if not column else "right")
    _add_scores(table, records[0], last)
    table.add_section()
    _add_bytes(table, last, directories.read_json(directory, directories.ENVIRONMENT))
    _add_seconds(table, records)
    table.add_row("peak memory", "", byte_count(last.peak_memory_bytes), "")
    return table


def _add_scores(table: Table, first: RoundRecord, last: RoundRecord) -> None:
    for role in _LLM_LAST:
        if role in last.scores:
            start, final = first.scores.get(role, first.scores.get("slm")), last.scores[role]
            before, gain = ("–", "–") if start is None else (f"{start:.3f}", f"{final - start:+.3f}")
            table.add_row(ROLES[role].full, before, f"{final:.3f}", gain)


def _add_bytes(table: Table, last: RoundRecord, environment: dict[str, Any]) -> None:
    if not last.bytes_up:
        return
    full = full_model_bytes(environment)
    share = f"{last.bytes_up / full:.2%} of the model" if full else ""
    table.add_row("up / down, per client and round", byte_count(last.bytes_up), byte_count(last.bytes_down), share)


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
    table = Table(title=source.caption, title_justify="left")
    for column in source.header:
        table.add_column(column, justify="left" if column == source.header[0] else "right")
    for row in source.rows:
        table.add_row(*row)
    return table


def parity_table(role: str, parity: "Parity") -> Table:
    """Return the scores by lm-evaluation-harness and by fedcollm's own scorer."""
    table = Table(title=f"{role} on {parity.examples} test examples of {parity.task}", title_justify="left")
    table.add_column("")
    for metric in parity.harness:
        table.add_column(metric, justify="right")
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


def cost_table(cost: "Cost", trained: bool = False) -> Table:
    """Return the parameters, bytes and memory that a configuration takes; `trained` if a measurement was made too."""
    nothing = "" if trained else "; nothing was trained"
    table = Table(title=f"the configuration is valid{nothing}", title_justify="left")
    table.add_column("")
    for role in cost.roles.values():
        table.add_column(role.source, justify="right", overflow="fold")
    roles = list(cost.roles.values())
    table.add_row("role", *(name.upper() for name in cost.roles))
    table.add_row("base parameters, frozen", *(f"{role.base_parameters / 1e6:.1f} M" for role in roles))
    table.add_row("adapter parameters", *(f"{role.adapter_parameters / 1e6:.2f} M" for role in roles))
    table.add_row("share of the model", *(f"{role.share:.2%}" for role in roles))
    slm = cost.roles["slm"]
    others = ["none"] * (len(roles) - 1)
    table.add_row("bytes down, per client and round", byte_count(slm.adapter_bytes), *others)
    table.add_row("bytes up, per client and round", byte_count(slm.upload_bytes), *others)
    table.add_row("bytes up, share of the base's", f"{slm.upload_share:.3%}", *others)
    table.add_row("base in memory", *(byte_count(role.base_bytes) for role in roles))
    lines = [f"estimated memory of one process: {byte_count(cost.memory_bytes)}", _data_line(cost)]
    if cost.statistics_bytes:
        lines.append(f"pseudo-labels: each client gets and sends {byte_count(cost.statistics_bytes)} once, in round 0")
    for role, made in cost.healed.items():
        state = "is in the cache already" if made else "is not in the cache: the run heals it first, once"
        lines.append(f"{role}.heal: the healed base {state}")
    if cost.epsilon is not None:
        lines.append(f"privacy: the whole run spends ε = {cost.epsilon:.3g} at δ = {cost.delta:g}")
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def settings_table(config: RunConfig) -> Table:
    """Return a configuration in words: main settings, ablations, and data and models that are not the default."""
    table = Table(title="settings", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    rows = {
        "settings": facts_in_words(config),
        "ablations": settings_in_words(config),
        "inputs": inputs_in_words(config),
    }
    for name, phrases in rows.items():
        if phrases:
            table.add_row(name, "\n".join(phrases), end_section=True)
    return table


def measured_table(measured: "Measured") -> Table:
    """Return the seconds, memory and bytes that a run would take, as predicted by a measurement."""
    table = Table(title="prediction for a run, measured on a few batches", title_justify="left")
    for column in ("", "mean of a round", "whole run"):
        table.add_column(column, justify="right" if column else "left")
    parts = measured.round_seconds
    for part in PARTS:
        table.add_row(f"time: {part}", duration(parts[part]) if part in parts else NOT_COVERED, "")
    whole = measured.run_seconds
    table.add_row("time: loading and round 0", "", duration(measured.start_seconds))
    table.add_row(
        "time: total",
        NOT_COVERED if whole is None else duration(sum(parts.values())),
        NOT_COVERED if whole is None else duration(whole),
    )
    up, down = (_covered_bytes(count) for count in (measured.bytes_up, measured.bytes_down))
    table.add_row("bytes up / down, per client", f"{up} / {down}", "")
    table.add_row("bytes, all clients", "", _covered_bytes(measured.run_bytes))
    table.add_row("peak memory", "", byte_count(measured.peak_memory_bytes))
    table.caption = "\n".join(measured.notes) or None
    table.caption_justify = "left"
    return table


def _covered_bytes(count: int | None) -> str:
    return NOT_COVERED if count is None else byte_count(count)


def _data_line(cost: "Cost") -> str:
    if cost.data is None:
        return f"data: not checked. {cost.data_note}"
    sizes = {name: sum(labels.values()) for name, labels in cost.data["clients"].items()}
    public = sum(cost.data["public"].values())
    rest = ", ".join(
        f"{name.replace('_', ' ')} {cost.data[name]}" for name in ("unlabelled", "test", "duplicates_removed")
    )
    return "; ".join([f"data: private {sizes}, public {public}, {rest}", *cost.data["notes"]])


def shrink_table(report: "ShrinkReport", scores: Mapping[str, float]) -> Table:
    """Return how well a model fits a held-out text before and after cutting and healing, and its zero-shot scores."""
    table = Table(title=f"kept layers: {', '.join(map(str, report.layers))}", title_justify="left")
    for column in ("", "parameters", "KL per token (nats)", "perplexity", *(["zero-shot"] if scores else [])):
        table.add_column(column, justify="left" if not column else "right")
    for name, fit in (("whole", report.whole), ("cut", report.cut), ("healed", report.healed)):
        size = report.parameters["whole" if name == "whole" else "cut"]
        kl = "–" if fit.kl is None else f"{fit.kl:.3f}"
        score = [f"{scores[name]:.3f}" if name in scores else "–"] if scores else []
        table.add_row(name, f"{size / 1e6:.1f} M", kl, f"{fit.perplexity:,.0f}", *score)
    return table
