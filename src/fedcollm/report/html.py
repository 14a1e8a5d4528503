"""One self-contained HTML file from run directories: nothing in it is loaded from anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fedcollm.errors import UserError
from fedcollm.report import content, labels, plots, tables
from fedcollm.report.compared import found_in
from fedcollm.report.compared_tables import difference_table, score_table
from fedcollm.report.formats import count, share
from fedcollm.report.runs import Method, Run, find_runs, group, main_first, read_run, with_true_roles
from fedcollm.report.scores import ROLES, curve
from fedcollm.runs.directory import CONFIG, REPORT
from fedcollm.storage import write_atomically, writing


@dataclass(frozen=True)
class Panel:
    """A plot, what it says to who can't see it, and its numbers.

    Attributes:
        id: of the plot's element.
        title: heading.
        text: caption, what to look for.
        alt: description of the picture.
        figure: the plot.
        table: the same in numbers.
    """

    id: str
    title: str
    text: str
    alt: str
    figure: go.Figure
    table: tables.Table


def write_report(directories: Sequence[Path], out: Path) -> Path:
    """Write a report on runs.

    Args:
        directories: run directories, or folders that hold several (`fedcollm compare`). The first run, or
            FedCoLLM if the first folder holds several, is what the report is about; the others are compared with it.
        out: the file to write, or a folder that is to hold `report.html`.

    Returns:
        The file.

    Raises:
        UserError: a directory holds no run, none has a finished round, or the file can't be written.
    """
    methods, unfinished = read_methods(directories)
    file = out / REPORT if out.is_dir() else out
    page = render(methods, unfinished, controls(directories[0]))
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, page)
    return file


def read_methods(directories: Sequence[Path]) -> tuple[list[Method], list[Path]]:
    """Methods in the order of the report, and run directories without a finished round.

    Raises:
        UserError: a directory holds no run, or none has a finished round.
    """
    if not directories:
        raise UserError("No run directory given. Give one that `fedcollm run --out` wrote.")
    found = {path.resolve(): path for directory in directories for path in find_runs(directory)}
    runs = [read_run(path) for path in found.values()]
    finished = [run for run in runs if run.records]
    unfinished = [run.directory for run in runs if not run.records]
    if not finished:
        first = unfinished[0]
        raise UserError(f"{first} has no finished round to report on. Go on with: fedcollm run --resume --out {first}")
    methods = group(finished)
    ordered = methods if (directories[0] / CONFIG).is_file() else main_first(methods)
    return with_true_roles(ordered), unfinished


def controls(directory: Path) -> list[tables.Table]:
    """Tables of a comparison's finished methods, if it is the directory of one."""
    compared = found_in(directory)
    if compared is None:
        return []
    return [table for table in (score_table(compared), difference_table(compared)) if table]


def render(methods: Sequence[Method], unfinished: Sequence[Path] = (), compared: Sequence[tables.Table] = ()) -> str:
    """The whole page."""
    run = methods[0].runs[0]
    numbers = tables.summarize(run)
    sections = _sections(methods, run, numbers)
    # Plotly's own JSON: "<", ">" and "/" escaped, so that no text ends the script element, and NaN as null.
    figures = ", ".join(f'"{panel.id}": {panel.figure.to_json()}' for _, panels in sections for panel in panels)
    environment = Environment(loader=PackageLoader("fedcollm.report", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("template.html").render(
        title=methods[0].name,
        run=run,
        headline=content.headline(methods[0], numbers),
        caution=content.caution(methods[0]),
        tiles=content.tiles(methods[0], numbers),
        comparison=tables.comparison(methods) if len(methods) > 1 or len(methods[0].by_seed) > 1 else None,
        compared=compared,
        explained=content.explained(methods),
        differences=content.differences(methods) if len(methods) > 1 else None,
        several=len(methods[0].runs) > 1,
        unfinished=unfinished,
        sections=sections,
        method=content.METHOD,
        settings=content.settings(run.config),
        configuration=yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        environment=content.environment_table(run.environment) if run.environment else None,
        figures=Markup("{" + figures + "}"),
        plotly=Markup(get_plotlyjs()),
    )


def _sections(methods: Sequence[Method], run: Run, numbers: tables.Summary) -> list[tuple[str, list[Panel]]]:
    """Plots by section; sections without plots are left out."""
    split = labels.parts(run.data)
    sections = [
        ("Accuracy", [*_accuracy(methods), *_confusion(run)]),
        ("Training", [*_training(run)]),
        ("Communication", [*_communication(run, numbers)] if methods[0].federated else []),
        ("Data", [*_data(run, split)]),
    ]
    return [(name, panels) for name, panels in sections if panels]


def _accuracy(methods: Sequence[Method]) -> Iterator[Panel]:
    """Accuracy by round, if any method has a score."""
    if not any(curve(method, role) for method in methods for role in ROLES):
        return
    table = tables.score_table(methods)
    text = "Share of test examples answered right. Round 0 is before any training."
    text += " Other methods: their small model." if len(methods) > 1 else ""
    seeds = any(len(method.by_seed) > 1 for method in methods)
    text += " Bands: 95% interval of the mean over seeds." if seeds else ""
    alt = f"Line plot of accuracy by round for {', '.join(name for name in table.header[1:] if name != 'ε spent')}"
    if len(methods) > 1:
        words = "Both models at the end of every method" + (", mean and 95% interval over seeds." if seeds else ".")
        final_alt = f"Dot plot of the final accuracy of {', '.join(method.name for method in methods)}"
        final = plots.final_plot(methods)
        yield Panel("plot-final", "Final accuracy by method", words, final_alt, final, tables.comparison(methods))
    yield Panel("plot-accuracy", "Accuracy by round", text, alt, plots.accuracy_plot(methods), table)


def _confusion(run: Run) -> Iterator[Panel]:
    """One heatmap a role that has a confusion."""
    for role, rows in run.confusion.items():
        names = labels.confusion_labels(rows)
        if not names or role not in ROLES:
            continue
        title = f"Confusion, {ROLES[role].lower()}"
        text = "Each row is a true label: where its test examples went, after the last round. Hover for counts."
        alt = f"Heatmap of true against predicted labels for the {ROLES[role].lower()}, each row summing to one"
        table = labels.confusion_table(rows, names, ROLES[role].lower())
        yield Panel(f"plot-confusion-{role}", title, text, alt, plots.confusion_plot(rows, names), table)


def _training(run: Run) -> Iterator[Panel]:
    """Losses and time, those that were recorded."""
    if any(record.losses for record in run.records):
        text = (
            "Means over the round, in nats: cross-entropy (CE) on private examples (clients) and on the public set "
            "(both models), and KL divergence between the two models."
        )
        alt = "Small line plots of every training loss by round"
        yield Panel(
            "plot-losses", "Losses by round", text, alt, plots.loss_plot(run.records), tables.loss_table(run.records)
        )
    if any(record.seconds for record in run.records):
        text = "Wall-clock time. Clients that run one after the other in one process add up."
        alt = "Stacked bars of seconds by round: clients, distillation, evaluation"
        yield Panel(
            "plot-time", "Time by round", text, alt, plots.time_plot(run.records), tables.time_table(run.records)
        )


def _communication(run: Run, numbers: tables.Summary) -> Iterator[Panel]:
    """Bytes, if any traveled."""
    if not numbers.bytes_up + numbers.bytes_down:
        return
    text = "What one client has sent and received so far; the axis is logarithmic."
    if numbers.share_of_full_model is not None:
        text += f" A round’s adapter is {share(numbers.share_of_full_model)} of the small model’s size."
    alt = "Line plot of the bytes that one client sent and received so far, beside those of the full model"
    figure = plots.byte_plot(run.records, numbers.full_model_bytes)
    yield Panel(
        "plot-bytes", "Bytes sent so far", text, alt, figure, tables.byte_table(run.records, numbers.full_model_bytes)
    )


def _data(run: Run, split: dict[str, dict[str, int]]) -> Iterator[Panel]:
    """Who holds which labels, if the run tells."""
    if not labels.label_order(split):
        return
    facts = [f"{count(run.data[key])} {words}" for key, words in labels.FACTS.items() if run.data.get(key)]
    text = "Training examples by label and holder." + (f" Beside them: {', '.join(facts)}." if facts else "")
    alt = "Plot of the number of training examples by label, for each client and the public part"
    yield Panel("plot-data", "Data of the clients", text, alt, plots.data_plot(split), labels.data_table(split))
