"""Write a report on runs as one self-contained HTML file, which loads nothing from anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedcollm.config.roles import PARTS, ROLES
from fedcollm.config.yaml_text import write_yaml
from fedcollm.errors import UserError
from fedcollm.report import bundle, content, exhibits, heading, labels, map_layout, plots, tables
from fedcollm.report.axes import Figure
from fedcollm.report.compared import found_in
from fedcollm.report.compared_tables import difference_table, score_table
from fedcollm.report.federation import federation_of
from fedcollm.report.formats import count, metric_title, share
from fedcollm.report.runs import Method, Run, find_runs, group, main_first, metric_of, read_run, with_true_roles
from fedcollm.report.scores import curve
from fedcollm.runs.directory import CONFIG, REPORT
from fedcollm.storage import make_directory, write_atomically, writing


@dataclass(frozen=True)
class Panel:
    """A plot with its caption, its numbers, and a description for people who can't see it.

    Attributes:
        id: id of the plot's HTML element.
        title: heading.
        text: caption, which says what to look for.
        alt: description of the plot, for people who can't see it.
        figure: the plot.
        table: the numbers that the plot shows.
    """

    id: str
    title: str
    text: str
    alt: str
    figure: Figure
    table: tables.Table


def write_report(directories: Sequence[Path], out: Path) -> Path:
    """Write a report on runs.

    Args:
        directories: run directories, or folders that hold several (`fedcollm compare`). The report is about the first
            run, or about FedCoLLM if the first folder holds several runs, and compares the others with it.
        out: the file to write, or an existing folder, in which `report.html` is written.

    Returns:
        The path of the file.

    Raises:
        UserError: a directory holds no run, none has a finished round, or the file can't be written.
    """
    methods, unfinished = read_methods(directories)
    file = out / REPORT if out.is_dir() else out
    page = render(methods, unfinished, controls(directories[0]))
    with writing(file.parent):
        make_directory(file.parent)
        write_atomically(file, page)
    return file


def read_methods(directories: Sequence[Path]) -> tuple[list[Method], list[Path]]:
    """Return the methods in the order of the report, and the run directories without a finished round.

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
        raise UserError(
            f"{first} has no finished round to report on. Resume it with: fedcollm run --resume --out {first}"
        )
    methods = group(finished)
    ordered = methods if (directories[0] / CONFIG).is_file() else main_first(methods)
    return with_true_roles(ordered), unfinished


def controls(directory: Path) -> list[tables.Table]:
    """Return the tables of a comparison's finished methods; no tables if the directory does not hold a comparison."""
    compared = found_in(directory)
    if compared is None:
        return []
    return [table for table in (score_table(compared), difference_table(compared)) if table]


def render(methods: Sequence[Method], unfinished: Sequence[Path] = (), compared: Sequence[tables.Table] = ()) -> str:
    """Return the whole page.

    Args:
        methods: the methods; the report is about the first one.
        unfinished: run directories that are left out because no round is finished.
        compared: tables of a comparison with controls.
    """
    run = methods[0].runs[0]
    numbers = tables.summarize(run)
    federation = federation_of(run) if methods[0].federated else None
    sections = _sections(methods, run, numbers)
    # plotly escapes "<", ">" and "/" in its JSON, so that no text can end the script element, and writes NaN as null.
    figures = ", ".join(f'"{panel.id}": {panel.figure.to_json()}' for _, panels in sections for panel in panels)
    environment = Environment(loader=PackageLoader("fedcollm.report", ""), autoescape=True, undefined=StrictUndefined)
    environment.filters["counted"], environment.filters["spoken"] = exhibits.counted, exhibits.spoken
    return environment.get_template("template.html").render(
        title=methods[0].name,
        run=run,
        headline=content.headline(methods[0], numbers),
        caution=content.caution(methods[0]),
        tiles=content.tiles(methods[0], numbers),
        facts=heading.facts(methods[0]),
        maps=map_layout.drawings(federation) if federation else (),
        map_text=map_layout.described(federation) if federation else "",
        comparison=tables.comparison(methods) if len(methods) > 1 or len(methods[0].by_seed) > 1 else None,
        compared=compared,
        explained=content.explained(methods),
        differences=content.differences(methods) if len(methods) > 1 else None,
        several=len(methods[0].runs) > 1,
        unfinished=unfinished,
        sections=sections,
        exhibits=exhibits.shown(run),
        regions=any(one.regions for one in run.exhibits),
        method=content.METHOD if run.config.control is None else content.CONTROL_METHOD,
        settings=content.settings(run.config),
        configuration=write_yaml(run.config.model_dump(mode="json"), sort_keys=False),
        environment=content.environment_table(run.environment) if run.environment else None,
        figures=Markup("{" + figures + "}"),
        plotly=bundle.packed(),
    )


def _sections(methods: Sequence[Method], run: Run, numbers: tables.Summary) -> list[tuple[str, list[Panel]]]:
    """Return the plots by section; sections without plots are left out."""
    split = labels.parts(run.data)
    sections = [
        (metric_title(metric_of(methods)), [*_accuracy(methods), *_confusion(run)]),
        ("Training", [*_training(run)]),
        (
            "Communication",
            [*_communication(run, numbers)] if methods[0].federated else [],
        ),
        ("Data", [*_data(run, split)]),
    ]
    return [(name, panels) for name, panels in sections if panels]


def _accuracy(methods: Sequence[Method]) -> Iterator[Panel]:
    """Yield the plots of the main metric by method and by round, if any method has a score."""
    if not any(curve(method, role) for method in methods for role in ROLES):
        return
    table = tables.score_table(methods)
    metric = metric_of(methods)
    text = f"{content.metric_sentence(metric)} Round 0 is before any training."
    text += " For the other methods, their small model is shown." if len(methods) > 1 else ""
    seeds = any(len(method.by_seed) > 1 for method in methods)
    text += " Bands show the 95% interval of the mean over seeds." if seeds else ""
    alt = f"Line plot of {metric} by round for {', '.join(name for name in table.header[1:] if name != 'ε spent')}"
    if len(methods) > 1:
        words = "Both models at the end of every method" + (", mean and 95% interval over seeds." if seeds else ".")
        final_alt = f"Dot plot of the final {metric} of {', '.join(method.name for method in methods)}"
        final = plots.final_plot(methods)
        yield Panel("plot-final", f"Final {metric} by method", words, final_alt, final, tables.comparison(methods))
    yield Panel("plot-accuracy", f"{metric_title(metric)} by round", text, alt, plots.accuracy_plot(methods), table)


def _confusion(run: Run) -> Iterator[Panel]:
    """Yield one heatmap per role that has a confusion table."""
    for role, rows in run.confusion.items():
        names = labels.confusion_labels(rows)
        if not names or role not in ROLES:
            continue
        model = ROLES[role].label.lower()
        title = f"Confusion, {model}"
        text = (
            "Each row shows the predictions for one true label’s test examples after the last round. Hover for counts."
        )
        alt = f"Heatmap of true against predicted labels for the {model}, each row summing to one"
        table = labels.confusion_table(rows, names, model)
        yield Panel(f"plot-confusion-{role}", title, text, alt, plots.confusion_plot(rows, names), table)


def _training(run: Run) -> Iterator[Panel]:
    """Yield the plots of losses and of times, for those that were recorded."""
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
        text = "Wall-clock time. The times of clients that run one after the other in one process add up."
        alt = f"Stacked bars of seconds by round: {', '.join(PARTS)}"
        yield Panel(
            "plot-time", "Time by round", text, alt, plots.time_plot(run.records), tables.time_table(run.records)
        )


def _communication(run: Run, numbers: tables.Summary) -> Iterator[Panel]:
    """Yield the plot of the bytes of a client, if there are any; a control, which has one round, needs no plot."""
    if run.config.control is not None or not numbers.bytes_up + numbers.bytes_down:
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
    """Yield the plot of labels by holder, if `data.json` names any."""
    if not labels.label_order(split):
        return
    facts = [f"{count(run.data[key])} {words}" for key, words in labels.FACTS.items() if run.data.get(key)]
    text = "Training examples by label and holder." + (f" In addition: {', '.join(facts)}." if facts else "")
    alt = "Plot of the number of training examples by label, for each client and the public part"
    yield Panel("plot-data", "Data of the clients", text, alt, plots.data_plot(split), labels.data_table(split))
