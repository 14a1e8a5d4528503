"""Tables of a comparison in the layout of the paper: scores and budgets, paired differences, and several tasks."""

import math
from collections.abc import Sequence

from fedcollm.config.methods import METHODS
from fedcollm.config.roles import MODELS, ROLES
from fedcollm.report.budgets import Sizes
from fedcollm.report.compared import COLUMNS, REFERENCES, Compared, Row
from fedcollm.report.formats import count, metric_title, percent, points
from fedcollm.report.scores import FEWEST_SEEDS, Difference
from fedcollm.report.tables import Table

#: Names of the reference methods in column headings.
SHORT = {
    "closed_form": "closed form",
    "fedavg_ce": "FedAvg + CE",
    "fedavg_ce_labelled": "FedAvg + CE on labelled",
    "fedcollm": "FedCoLLM",
}


def score_table(compared: Compared, page: bool = False) -> Table:
    """Return the scores and the optimizer steps of every method; on a page, in percent and with the page's names."""
    rows = [
        (
            _name(row, compared),
            *(row.percent(column) if page else row.text(column) for column in COLUMNS),
            *(_steps(row, part) for part in ("client", "server")),
        )
        for row in compared.rows
    ]
    header = ("method", *_columns(page).values(), "client steps", "server steps")
    header = tuple(metric_title(name) for name in header) if page else header
    return Table(f"{compared.name}: {_interval_words(compared)}. {_size_words(compared.sizes)}".strip(), header, rows)


def _columns(page: bool) -> dict[str, str]:
    """Return column to heading."""
    return {column: ROLES[column].label for column in COLUMNS} if page else COLUMNS


def difference_table(compared: Compared, page: bool = False) -> Table | None:
    """Return the difference of every method from the references, for both models; None if nothing can be paired."""
    columns = [
        (role, reference)
        for role in MODELS
        for reference in REFERENCES
        if any(reference in row.differences.get(role, {}) for row in compared.rows)
    ]
    if not columns:
        return None
    rows = [
        (row.name, *(difference_cells(row.differences.get(role, {}).get(reference)) for role, reference in columns))
        for row in compared.rows
        if row.differences
    ]
    names = _columns(page)
    header = ("Method" if page else "method", *(f"{names[role]} above {SHORT[ref]}" for role, ref in columns))
    caption = (
        f"{compared.name}: differences in percentage points on the same test examples [95% interval], p: paired "
        "bootstrap, 10,000 resamples of the examples within each seed"
    )
    if len(compared.seeds) >= FEWEST_SEEDS:
        caption += (
            "; seeds ±: half-width of the 95% interval over seeds (Student’s t), which the bootstrap does not cover"
        )
    return Table(caption, header, rows)


def summary_table(tasks: Sequence[Compared], role: str, page: bool = False) -> Table:
    """Return one role's scores on several tasks: one row per method, one column per task, and the mean over tasks."""
    write = Row.percent if page else Row.text
    by_task = [{row.name: row for row in compared.rows} for compared in tasks]
    order = ["zero-shot", "before training", *(method.label for method in METHODS.values())]
    names = [name for name in order if any(name in known and known[name].mean(role) for known in by_task)]
    rows: list[tuple[str, ...]] = []
    for name in names:
        found = [known.get(name) for known in by_task]
        means = [known[0] for row in found if row and (known := row.mean(role))]
        mean = math.fsum(means) / len(means) if len(means) == len(tasks) else None
        whole = percent(mean) if page else "–" if mean is None else f"{mean:.3f}"
        rows.append((name, *(write(row, role) if row else "–" for row in found), whole))
    caption = f"{_columns(page)[role].replace('clients', 'Clients')} by task: {_tasks_words(tasks)}"
    header = ("Method" if page else "method", *(compared.name for compared in tasks), "Mean" if page else "mean")
    return Table(caption, header, rows)


def all_tables(tasks: Sequence[Compared]) -> list[Table]:
    """Return all tables of a comparison; with several tasks, the summaries over tasks come first."""
    tables = [summary_table(tasks, role) for role in COLUMNS] if len(tasks) > 1 else []
    for compared in tasks:
        differences = difference_table(compared)
        tables += [score_table(compared)] + ([differences] if differences else [])
    return tables


def _name(row: Row, compared: Compared) -> str:
    """Return the method's name, with the number of its seeds if some are missing."""
    seeds = max(map(len, row.values.values()), default=0)
    return row.name if seeds == len(compared.seeds) else f"{row.name} ({seeds} of {len(compared.seeds)} seeds)"


def _steps(row: Row, part: str) -> str:
    return count(getattr(row.steps, part)) if row.steps else "–"


def difference_cells(difference: Difference | None) -> str:
    """Return a difference with its interval and p-value.

    >>> difference_cells(Difference(0.012, -0.005, 0.029, 0.2143, 300, 1))
    '+1.2 [−0.5, +2.9], p = 0.21'
    >>> difference_cells(Difference(0.012, -0.005, 0.029, 0.2143, 900, 3, 0.031))
    '+1.2 [−0.5, +2.9], p = 0.21; seeds ± 3.1'
    """
    if difference is None:
        return "–"
    mean, low, high = map(points, (difference.mean, difference.low, difference.high))
    between = difference.seeds_half_width
    seeds = "" if between is None else f"; seeds ± {100 * between:.1f}"
    return f"{mean} [{low}, {high}], {p_words(difference.p)}{seeds}"


def p_words(p: float) -> str:
    """Return a p-value with two significant digits.

    >>> p_words(0.0002), p_words(0.0412), p_words(1.0)
    ('p < 0.001', 'p = 0.041', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _interval_words(compared: Compared) -> str:
    seeds = ", ".join(map(str, compared.seeds))
    if 1 < len(compared.seeds) < FEWEST_SEEDS:
        return f"mean over seeds {seeds}, which are too few for an interval"
    if len(compared.seeds) > 1:
        return f"mean ± half-width of the 95% interval over seeds {seeds} (Student’s t)"
    return f"seed {seeds}, ± half-width of the 95% interval over test examples"


def _tasks_words(tasks: Sequence[Compared]) -> str:
    if all(compared.seeds == tasks[0].seeds for compared in tasks):
        return _interval_words(tasks[0])
    return (
        f"mean ± half-width of the 95% interval, over seeds where there are {FEWEST_SEEDS} or more (Student’s t), over "
        "test examples where there is one"
    )


def _size_words(sizes: Sizes | None) -> str:
    if sizes is None:
        return ""
    return (
        f"{count(sizes.test)} test examples; "
        f"{sizes.clients} clients with {count(sizes.private)} private examples in total; "
        f"public: {count(sizes.labelled)} labelled, {count(sizes.unlabelled)} unlabelled. "
        "Steps are optimizer steps in a whole run, of all clients together and of each of the server’s models."
    )
