"""What a comparison says: a table, fractions in percent, and plain words about it. Values in, values out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from app.cli.client import Document

MARK = "*"
CHOSEN = "†"


@dataclass(frozen=True)
class Row:
    """One model's values, in the order of the tasks; None where it was never measured."""

    label: str
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...] = ()
    normalized: float | None = None
    learned_on: tuple[bool, ...] = ()  # by task: a merge behind the model had seen these inputs; (): none had
    chosen_by: tuple[bool, ...] = ()  # by task: a sweep behind the model chose by these examples; (): none did

    @property
    def average(self) -> float | None:
        """The mean over the tasks; None unless all were measured."""
        known = [value for value in self.values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(self.values) else None


@dataclass(frozen=True)
class Scale:
    """How a metric's values are shown, and which of two is better."""

    is_fraction: bool = True  # shown in percent
    higher_is_better: bool = True

    def show(self, value: float | None) -> str:
        """Return a value as the table has it; a dash where there is none."""
        return percent(value) if self.is_fraction or value is None else f"{value:.4g}"

    def order(self, row: Row) -> float:
        """Return a number that is lower for better rows."""
        average = row.average or 0.0
        return -average if self.higher_is_better else average


def read_scale(comparison: Document) -> Scale:
    """Return the scale of GET /v1/comparisons."""
    return Scale(comparison.get("unit") in (None, "fraction"), comparison.get("higher_is_better") is not False)


def read_rows(comparison: Document, labels: Mapping[str, str] | None = None) -> list[Row]:
    """Return the rows of GET /v1/comparisons; `labels` (ref -> words) rename them."""
    names = labels or {}
    return [_read_row(row, comparison, names.get(row["ref"], row["ref"])) for row in comparison["rows"]]


def individual_row(rows: Mapping[str, Row], tasks: Sequence[str], experts: Mapping[str, str]) -> Row:
    """Return the row of specialists: each task measured with its own expert (task -> label of a row)."""
    values = tuple(rows[experts[task]].values[index] for index, task in enumerate(tasks))
    errors = tuple(rows[experts[task]].errors[index] for index, task in enumerate(tasks))
    return Row("individual (one model per task)", values, errors, normalized=1.0)


def draw_table(rows: Sequence[Row], tasks: Sequence[str], *, metric: str, split: str, scale: Scale = Scale()) -> Table:
    """Return the table of the rows, fractions in percent, with standard errors; the best average stands out."""
    title = f"{metric}{' in %' if scale.is_fraction else ''} on {split} (± standard error)"
    marks = [
        *([f"{MARK} learned on these inputs (transductive)"] if any(any(row.learned_on) for row in rows) else []),
        *([f"{CHOSEN} chosen by these examples (a sweep)"] if any(any(row.chosen_by) for row in rows) else []),
    ]
    caption = "\n".join(marks) or None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=None, pad_edge=False)
    table.add_column("model", header_style="bold")
    for task in tasks:
        table.add_column(task, justify="right", header_style="bold")
    table.add_column("mean", justify="right", header_style="bold")
    has_normalized = any(row.normalized is not None for row in rows)
    if has_normalized:
        table.add_column("of individual", justify="right", header_style="bold")
    best = min((scale.order(row) for row in rows if row.average is not None), default=None)
    for row in rows:
        none = (False,) * len(row.values)
        cells = [
            _cell(value, error, scale) + MARK * is_learned_on + CHOSEN * is_chosen_by
            for value, error, is_learned_on, is_chosen_by in zip(
                row.values, row.errors, row.learned_on or none, row.chosen_by or none, strict=True
            )
        ]
        is_best = row.average is not None and scale.order(row) == best
        mean = Text(scale.show(row.average), style="bold" if is_best else "")
        ending = [percent(row.normalized)] if has_normalized else []
        table.add_row(row.label, *cells, mean, *ending)
    return table


def describe(rows: Sequence[Row], *, n_tasks: int, scale: Scale = Scale()) -> list[str]:
    """Say in plain words which row leads, by how much, and what is missing."""
    known = sorted((row for row in rows if row.average is not None), key=scale.order)
    unknown = [row.label for row in rows if row.average is None]
    tasks = f"{n_tasks} task{'s' if n_tasks != 1 else ''}"
    sentences: list[str] = []
    if known:
        best = f"{scale.show(known[0].average)}{' %' if scale.is_fraction else ''}"
        sentences.append(f"{known[0].label} is best on the mean of {tasks}: {best}.")
    for row in known[1:]:
        gap = f"{points(known[0], row):.1f} points above" if scale.is_fraction else "better than"
        sentences.append(f"{known[0].label} is {gap} {row.label}.")
    if unknown:
        sentences.append(f"Not measured on every task yet: {', '.join(unknown)}.")
    return sentences


def points(higher: Row, lower: Row) -> float:
    """Return the difference of two averages in points (percent of the items)."""
    if higher.average is None or lower.average is None:
        raise ValueError(f"{higher.label} and {lower.label} must both be measured on every task to be compared")
    return 100 * (higher.average - lower.average)


def percent(fraction: float | None) -> str:
    """Return a fraction as percent with one digit; a dash where there is none."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _read_row(row: Document, comparison: Document, label: str) -> Row:
    split, tasks = comparison.get("split"), comparison["tasks"]
    cells = [row["values"].get(task) or {} for task in tasks]
    values = tuple(cell.get("value") for cell in cells)
    errors = tuple(cell.get("stderr") for cell in cells)
    learned_on = tuple(bool(cell.get("transductive")) for cell in cells)
    chosen_by = tuple(
        any(tuning["split"] == split and task in tuning["tasks"] for tuning in cell.get("tuned_on", ()))
        for task, cell in zip(tasks, cells, strict=True)
    )
    return Row(label, values, errors, row.get("normalized_average"), learned_on, chosen_by)


def _cell(value: float | None, error: float | None, scale: Scale) -> str:
    if error is None:
        return scale.show(value)
    return f"{scale.show(value)} ±{100 * error:.1f}" if scale.is_fraction else f"{scale.show(value)} ±{error:.2g}"
