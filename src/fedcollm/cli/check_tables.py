"""Tables of `fedcollm check`. They need neither a run directory nor plots, so that the command starts fast."""

from typing import TYPE_CHECKING

from rich.table import Table

from fedcollm.cli.terminal import new_table
from fedcollm.config import RunConfig
from fedcollm.config.roles import PARTS
from fedcollm.config.words import facts_in_words, inputs_in_words, settings_in_words
from fedcollm.report.formats import byte_count, duration, share
from fedcollm.runs.memory_limit import limit_in_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedcollm.runs.estimate import Cost
    from fedcollm.runs.profile import Measured

NOT_COVERED = "not covered"

#: Number of labels of a client that are shown.
_LABELS = 3


def cost_table(cost: "Cost", trained: bool = False) -> Table:
    """Return the parameters, bytes and memory that a configuration takes; `trained` if a measurement was made too."""
    nothing = "" if trained else "; nothing was trained"
    roles = list(cost.roles.values())
    table = new_table(f"the configuration is valid{nothing}", "", *(role.source for role in roles))
    table.add_row("role", *(name.upper() for name in cost.roles))
    table.add_row("base parameters, frozen", *(f"{role.base_parameters / 1e6:.1f} M" for role in roles))
    table.add_row("adapter parameters", *(f"{role.adapter_parameters / 1e6:.2f} M" for role in roles))
    table.add_row("share of the base's parameters", *(share(role.share) for role in roles))
    slm = cost.roles["slm"]
    others = ["none"] * (len(roles) - 1)
    table.add_row("bytes down, per client and round", byte_count(slm.adapter_bytes), *others)
    table.add_row("bytes up, per client and round", byte_count(slm.upload_bytes), *others)
    table.add_row("base in memory", *(byte_count(role.base_bytes) for role in roles))
    lines = [f"estimated memory of one process: {byte_count(cost.memory_bytes)}", *_data_lines(cost)]
    if cost.limit_bytes is not None:
        lines.append(limit_in_words(cost.limited))
    if cost.statistics_bytes:
        lines.append(f"statistics: each client gets and sends {byte_count(cost.statistics_bytes)} once, in round 0")
    for role, made in cost.healed.items():
        state = "is in the cache already" if made else "is not in the cache: the run heals it first, once"
        lines.append(f"{role}.heal: the healed base {state}")
    lines += [f"note: {note}" for note in cost.notes]
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
    if config.federation.warning:
        table.add_row("warning", config.federation.warning, end_section=True)
    return table


def measured_table(measured: "Measured") -> Table:
    """Return the seconds, memory and bytes that a run would take, as predicted by a measurement."""
    table = new_table("prediction for a run, measured on a few batches", "", "mean of a round", "whole run")
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


def _data_lines(cost: "Cost") -> list[str]:
    """Return how many examples each part has and with which labels, how long they are, and what there is to say."""
    if cost.data is None:
        return [f"data: not checked. {cost.data_note}"]
    sizes = {name: sum(labels.values()) for name, labels in cost.data["clients"].items()}
    public = sum(cost.data["public"].values())
    rest = ", ".join(
        f"{name.replace('_', ' ')} {cost.data[name]}" for name in ("unlabelled", "test", "duplicates_removed")
    )
    labels = {f"client {name}": held for name, held in cost.data["clients"].items()} | {"public": cost.data["public"]}
    return [
        f"data: private {sizes}, public {public}, {rest}",
        *(f"  labels, {name}: {_counts(held)}" for name, held in labels.items() if held.keys() - {"all"}),
        *(
            f"  {name}: " + ", ".join(f"{what} {value}" for what, value in values.items())
            for name, values in cost.lengths.items()
        ),
        *(f"  note: {note}" for note in cost.data["notes"]),
    ]


def _counts(labels: "Mapping[str, int]") -> str:
    """Return the most frequent labels with their numbers, and how many more there are."""
    ordered = sorted(labels.items(), key=lambda item: -item[1])
    named = ", ".join(f"{label!r:.40} {count}" for label, count in ordered[:_LABELS])
    return named + (f" and {len(ordered) - _LABELS} more" if len(ordered) > _LABELS else "")
