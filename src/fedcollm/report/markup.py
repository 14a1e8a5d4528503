"""Write tables as Markdown and as LaTeX."""

from collections.abc import Sequence

from fedcollm.report.tables import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "–": "--",
    "’": "'",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "μ": r"$\mu$",
}


def to_markdown(tables: Sequence[Table]) -> str:
    """Return tables in Markdown, each with its caption above it."""
    return "\n".join(f"{_escaped_markdown(table.caption)}\n\n{_markdown_rows(table)}" for table in tables)


def _markdown_rows(table: Table) -> str:
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "".join(f"| {' | '.join(map(_escaped_markdown, line))} |\n" for line in lines)


def _escaped_markdown(text: str) -> str:
    r"""Return text that Markdown takes literally.

    >>> print(_escaped_markdown("a|b on D_a"))
    a\|b on D\_a
    """
    return "".join(f"\\{sign}" if sign in r"\|*_`<" else sign for sign in text)


def to_latex(tables: Sequence[Table]) -> str:
    r"""Return tables in LaTeX; the document needs `\usepackage{booktabs}`."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    lines = [
        r"\begin{table}",
        rf"\caption{{{escaped_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        _latex_row(table.header),
        r"\midrule",
        *map(_latex_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped_latex, cells)) + r" \\"


def escaped_latex(text: str) -> str:
    r"""Return text that LaTeX typesets as it is.

    >>> print(escaped_latex("D_a: 95 % ± 1"))
    D\_a: 95 \% $\pm$ 1
    """
    return "".join(_LATEX.get(sign, sign) for sign in text)
