"""The sections of a page: which plots a run and a comparison have, with their captions and their numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedcollm.config.roles import PARTS, ROLES
from fedcollm.report import compared_plots, content, gains, labels, plots, rounds, score_plots, tables, tasks
from fedcollm.report.axes import Figure
from fedcollm.report.compared import REFERENCES, Compared
from fedcollm.report.compared_tables import SHORT
from fedcollm.report.formats import amount, count, metric_title, share
from fedcollm.report.runs import Method, Run, metric_of
from fedcollm.report.scores import FEWEST_SEEDS, curve

#: Plots that need the whole width of the page.
WIDE = [
    f"plot-{name}"
    for name in ("accuracy", "attendance", "bytes", "clients", "data", "final", "gains", "tasks", "timeline")
]


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


def sections(
    methods: Sequence[Method], everything: Sequence[Method], compared: Sequence[Compared]
) -> list[tuple[str, list[Panel]]]:
    """Return the plots by section; sections without plots are left out.

    Args:
        methods: the methods on the first task; the page is about the first one.
        everything: the methods on all tasks.
        compared: the comparisons with controls.
    """
    run, main = methods[0].runs[0], methods[0]
    found = [
        ("Tasks", [*_tasks(everything)]),
        (metric_title(metric_of(methods)), [*_accuracy(methods), *_clients(methods), *_gains(run), *_confusion(run)]),
        ("Paired differences", [panel for index, one in enumerate(compared) for panel in _forests(one, index)]),
        ("Training", [*_rounds(run), *_training(run)]),
        ("Communication and privacy", [*_communication(run), *_privacy(run)] if main.federated else []),
        ("Data", [*_data(run, labels.parts(run.data)), *_profile(run)]),
    ]
    return [(name, panels) for name, panels in found if panels]


def _tasks(methods: Sequence[Method]) -> Iterator[Panel]:
    """Yield the overview over tasks, if there are several."""
    if tasks.several(methods):
        text = "Both models before training and after the last round. All that follows is about the first run’s task."
        figure = tasks.overview_plot(methods)
        alt = "Dot plot of both models’ scores by task and method"
        yield Panel("plot-tasks", "Scores by task", text, alt, figure, tasks.overview(methods))


def _clients(methods: Sequence[Method]) -> Iterator[Panel]:
    """Yield the bars of the clients alone and federated, if a comparison has standalone training."""
    own, shared = compared_plots.alone(methods), compared_plots.together(methods[0])
    if not own or shared is None or methods[0].name == "standalone":
        return
    personal = compared_plots.kept(methods[0])
    text = (
        f"Each client’s small model trained on its own data only, beside the one that {methods[0].label} gives to all "
        "of them, on the same test examples."
    )
    figure = compared_plots.clients_plot(own, shared, personal)
    table = compared_plots.clients_table(own, shared, personal)
    alt = "Bars of each client’s score alone and federated"
    yield Panel("plot-clients", "Clients: alone and federated", text, alt, figure, table)


def _gains(run: Run) -> Iterator[Panel]:
    """Yield the gain per class, if the models' answers have classes."""
    classes = gains.class_gains(run)
    if not classes or not classes[0].gains:
        return
    text = "Share of each class’s test examples that are answered correctly"
    text += ": before any training (open) and after the last round (filled)." if run.confusion_start else "."
    if len(classes) > gains.MOST_CLASSES:
        text += (
            f" The plot shows the {gains.MOST_CLASSES} classes with the most test examples of {count(len(classes))}."
        )
    alt = "Dot plot of both models’ recall by class"
    table = gains.gain_table(classes)
    yield Panel("plot-gains", "Gain per class", text, alt, gains.gain_plot(classes), table)


def _forests(compared: Compared, index: int) -> Iterator[Panel]:
    """Yield a forest plot for each method that others are compared with."""
    for reference in REFERENCES:
        if not compared_plots.forest_rows(compared, reference):
            continue
        title = f"{compared.name}: difference from {SHORT[reference]}"
        text = (
            "Points to the right of the line are better. Bars are 95% intervals of the paired bootstrap over test "
            "examples; a bar that does not reach the line is a difference that the examples alone don’t explain."
        )
        alt = f"Forest plot of every method’s paired difference from {SHORT[reference]}"
        figure = compared_plots.forest_plot(compared, reference)
        table = compared_plots.forest_table(compared, reference)
        yield Panel(f"plot-forest-{index}-{reference}", title, text, alt, figure, table)


def _rounds(run: Run) -> Iterator[Panel]:
    """Yield the timeline of the last rounds, and who took part in all of them."""
    if last := rounds.last_rounds(run.records):
        text = f"The last {amount(len(last), 'round')}, from left to right in the order in which things happened."
        text += " ⚠ stands before the number of clients that were late or lost." if any(r.lost for r in last) else ""
        alt = f"Bars on a time axis: {', '.join(PARTS.values())}"
        figure, table = rounds.timeline_plot(run.records), rounds.timeline_table(run.records)
        yield Panel("plot-timeline", "Timeline of the last rounds", text, alt, figure, table)
    states = rounds.attendance(run.records, _held(run))
    if not any(state != "took part" for one in states.values() for state in one):
        return
    shown = rounds.most_missed(states)
    text = "One mark per client and round. Hover for the reason why a client was lost."
    if len(shown) < len(states):
        text += f" The plot shows {count(len(shown))} of {count(len(states))} clients, those that missed the most."
    figure, table = rounds.attendance_plot(run.records, shown), rounds.attendance_table(run.records, states)
    alt = "Marks of who took part, was late or was lost, by client and round"
    yield Panel("plot-attendance", "Clients by round", text, alt, figure, table)


def _held(run: Run) -> list[str]:
    """Return the clients that the run may ask, as far as its data tells."""
    wanted = run.config.federation.participants
    return [name for name in run.data.get("clients", {}) if wanted is None or name in wanted]


def _privacy(run: Run) -> Iterator[Panel]:
    """Yield the ε spent by round, under differential privacy."""
    if rounds.spent(run.records):
        text = "What an observer can learn at most about what privacy protects: lower is better, and it only grows."
        figure, table = rounds.epsilon_plot(run.records), rounds.epsilon_table(run.records)
        yield Panel("plot-epsilon", "Privacy spent", text, "Line plot of ε by round", figure, table)


def _accuracy(methods: Sequence[Method]) -> Iterator[Panel]:
    """Yield the plots of the main metric by method and by round, if any method has a score."""
    if not any(curve(method, role) for method in methods for role in ROLES):
        return
    table = tables.score_table(methods)
    metric = metric_of(methods)
    text = f"{content.metric_sentence(metric)} Round 0 is before any training."
    text += " For the other methods, their small model is shown." if len(methods) > 1 else ""
    text += _of_seeds(methods)
    alt = f"Line plot of {metric} by round for {', '.join(name for name in table.header[1:] if name != 'ε spent')}"
    if len(methods) > 1:
        words = f"Both models at the end of every method.{_of_seeds(methods)}"
        final_alt = f"Dot plot of the final {metric} of {', '.join(method.label for method in methods)}"
        final = score_plots.final_plot(methods)
        yield Panel("plot-final", f"Final {metric} by method", words, final_alt, final, tables.comparison(methods))
    yield Panel(
        "plot-accuracy", f"{metric_title(metric)} by round", text, alt, score_plots.accuracy_plot(methods), table
    )


def _of_seeds(methods: Sequence[Method]) -> str:
    """Return a sentence on how a plot shows several seeds; empty if there is one seed only."""
    most = max(len(method.by_seed) for method in methods)
    if most >= FEWEST_SEEDS:
        return " Bands and bars are 95% intervals of the mean over seeds."
    return " Small dots are single seeds." if most > 1 else ""


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


def _communication(run: Run) -> Iterator[Panel]:
    """Yield the plot of the bytes of a client, if there are any; a control, which has one round, needs no plot."""
    numbers = tables.summarize(run)
    if run.config.control is not None or not numbers.bytes_up + numbers.bytes_down:
        return
    text = "What one client has sent and received so far; the axis is logarithmic."
    if numbers.adapter_share is not None:
        text += f" A round’s adapter has {share(numbers.adapter_share)} of the small model’s parameters."
    alt = "Line plot of the bytes that one client sent and received so far, beside those of the full model"
    figure = plots.byte_plot(run.records, numbers.full_model_bytes)
    yield Panel(
        "plot-bytes", "Bytes sent so far", text, alt, figure, tables.byte_table(run.records, numbers.full_model_bytes)
    )


def _profile(run: Run) -> Iterator[Panel]:
    """Yield the labels and the lengths of all clients' examples, if the run asked for their profile."""
    profile = run.profile
    if profile is None:
        return
    from fedcollm.data.audit.profiles import LENGTHS, bin_names  # it loads torch

    clients = f"{count(profile.examples)} examples of {amount(profile.clients, 'client')}"
    text = f"{clients}, as sums over the clients; nobody sees a single client’s numbers under secure aggregation."
    lengths = dict(zip(bin_names(profile.kind), profile.lengths, strict=True)) if profile.lengths else dict[str, int]()
    unit = LENGTHS[profile.kind].unit if lengths else ""
    for id, what, counts in (
        ("labels", "Label", labels.folded({"": profile.labels})[""]),
        ("lengths", "Length", lengths),
    ):
        if any(counts.values()):
            title = "Labels of the federation" if id == "labels" else f"Lengths of the federation, in {unit}"
            alt = f"Bars of the number of the clients’ examples by {what.lower()}"
            table = labels.count_table(counts, what)
            yield Panel(f"plot-profile-{id}", title, text, alt, plots.count_plot(counts), table)


def _data(run: Run, split: dict[str, dict[str, int]]) -> Iterator[Panel]:
    """Yield the plot of labels by holder, if `data.json` names any."""
    if not labels.label_order(split):
        return
    facts = [f"{count(run.data[key])} {words}" for key, words in labels.FACTS.items() if run.data.get(key)]
    text = "Training examples by label and holder." + (f" In addition: {', '.join(facts)}." if facts else "")
    alt = "Plot of the number of training examples by label, for each client and the public part"
    yield Panel("plot-data", "Data of the clients", text, alt, plots.data_plot(split), labels.data_table(split))
