"""What a person reads in the terminal, as plain text for the consoles of `terminal`, which read no markup."""

from pathlib import Path

from rich.table import Table

from fedcollm.experiments.comparison import Comparison
from fedcollm.messages import RoundRecord
from fedcollm.report import tables
from fedcollm.report.compared_tables import all_tables
from fedcollm.report.formats import byte_count, duration
from fedcollm.report.tables import full_model_bytes
from fedcollm.runs import directory as directories
from fedcollm.runs.estimate import Cost
from fedcollm.runs.harness import Parity
from fedcollm.runs.profile import Measured

NOT_COVERED = "not covered"


def round_line(record: RoundRecord) -> str:
    """One line a round, in columns of fixed width."""
    names = {"slm": "SLM", "clients": "clients", "personal": "personal", "llm": "LLM"}
    scores = [f"{name} {record.scores[role]:.3f}" for role, name in names.items() if role in record.scores]
    parts = {part: record.seconds.get(part, 0.0) for part in ("clients", "distillation", "evaluation")}
    spent = ", ".join(f"{part} {value:.0f}" for part, value in parts.items() if value)
    when = f"{sum(parts.values()):.0f} s ({spent})" if spent else "before training"
    lost = "; ".join(f"client {client}: {reason}" for client, reason in record.lost.items())
    epsilon = "" if record.epsilon is None else f"  ε {record.epsilon:.3g}"
    line = f"round {record.round:2}  {'  '.join(scores) or 'not scored'}{epsilon}  {when}"
    return line + (f"  lost {lost}" if lost else "")


def summary_table(directory: Path) -> Table:
    """Zero-shot to final for both roles, bytes, time and memory of a finished run."""
    records, environment = (
        directories.read_records(directory),
        directories.read_json(directory, directories.ENVIRONMENT),
    )
    first, last = records[0], records[-1]
    table = Table(title=f"{directory}: {last.round} rounds", title_justify="left")
    for column in ("", "zero-shot", "final", "gain"):
        table.add_column(column, justify="left" if not column else "right")
    names = {
        "slm": "SLM (global)",
        "clients": "SLM (clients' mean, after local tuning)",
        "personal": "SLM (mean of what clients keep)",
        "llm": "LLM",
    }
    for role, name in names.items():
        if role in last.scores:
            start = first.scores[role if role in first.scores else "slm"]
            table.add_row(name, f"{start:.3f}", f"{last.scores[role]:.3f}", f"{last.scores[role] - start:+.3f}")
    table.add_section()
    if last.bytes_up:
        full = full_model_bytes(environment)
        table.add_row(
            "up / down, a client a round",
            byte_count(last.bytes_up),
            byte_count(last.bytes_down),
            f"{last.bytes_up / full:.2%} of the model" if full else "",
        )
    parts = {
        part: sum(record.seconds.get(part, 0.0) for record in records)
        for part in ("clients", "distillation", "evaluation")
        if any(part in record.seconds for record in records)
    }
    for part, seconds in parts.items():
        table.add_row(f"time: {part}", "", f"{seconds:.0f} s", f"{seconds / (sum(parts.values()) or 1):.0%}")
    table.add_row("peak memory", "", byte_count(last.peak_memory_bytes), "")
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The paper's tables."""
    return [_plain_table(table) for table in all_tables(comparison.tasks)]


def _plain_table(source: tables.Table) -> Table:
    """A report's table for the terminal."""
    table = Table(title=source.caption, title_justify="left")
    for column in source.header:
        table.add_column(column, justify="left" if column == source.header[0] else "right")
    for row in source.rows:
        table.add_row(*row)
    return table


def parity_table(role: str, parity: Parity) -> Table:
    """lm-evaluation-harness beside the scorer of the loop."""
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
        lines.append("near ties fall either way, as with another batch size; in float32 hardly any do")
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def cost_table(cost: Cost, trained: bool = False) -> Table:
    """Parameters, bytes and memory of a configuration."""
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
    table.add_row("bytes down, a client a round", byte_count(slm.adapter_bytes), *others)
    table.add_row("bytes up, a client a round", byte_count(slm.upload_bytes), *others)
    table.add_row("bytes up, share of the base's", f"{slm.upload_share:.3%}", *others)
    table.add_row("base in memory", *(byte_count(role.base_bytes) for role in roles))
    lines = [f"memory of one process, estimated: {byte_count(cost.memory_bytes)}", _data_line(cost)]
    if cost.epsilon is not None:
        lines.append(f"privacy: the whole run spends ε = {cost.epsilon:.3g} at δ = {cost.delta:g}")
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table


def measured_table(measured: Measured) -> Table:
    """Seconds, memory and bytes that a run would take."""
    table = Table(title="a run would take, by a measurement on a few batches", title_justify="left")
    for column in ("", "a round, on average", "the whole run"):
        table.add_column(column, justify="right" if column else "left")
    parts = measured.round_seconds
    for part in ("clients", "distillation", "evaluation"):
        table.add_row(f"time: {part}", duration(parts[part]) if part in parts else NOT_COVERED, "")
    whole = measured.run_seconds
    table.add_row("time: loading and round 0", "", duration(measured.start_seconds))
    table.add_row(
        "time: all",
        NOT_COVERED if whole is None else duration(sum(parts.values())),
        NOT_COVERED if whole is None else duration(whole),
    )
    up, down = (_covered_bytes(count) for count in (measured.bytes_up, measured.bytes_down))
    table.add_row("bytes up / down, a client", f"{up} / {down}", "")
    table.add_row("bytes, all clients", "", _covered_bytes(measured.run_bytes))
    table.add_row("peak memory", "", byte_count(measured.peak_memory_bytes))
    table.caption = "\n".join(measured.notes) or None
    table.caption_justify = "left"
    return table


def _covered_bytes(count: int | None) -> str:
    return NOT_COVERED if count is None else byte_count(count)


def _data_line(cost: Cost) -> str:
    if cost.data is None:
        return f"data: not checked. {cost.data_note}"
    sizes = {name: sum(labels.values()) for name, labels in cost.data["clients"].items()}
    public = sum(cost.data["public"].values())
    rest = ", ".join(
        f"{name.replace('_', ' ')} {cost.data[name]}" for name in ("unlabelled", "test", "duplicates_removed")
    )
    return "; ".join([f"data: private {sizes}, public {public}, {rest}", *cost.data["notes"]])
