"""What a comparison says in a table and in words."""

import io

import pytest
from rich.console import Console

from app.cli.client import Document
from app.cli.comparing import Row, describe, draw_table, individual_row, points, read_rows, read_scale

TASKS = ["emoji", "language"]


def cell(value: float, stderr: float | None = 0.02) -> Document:
    return {"value": value, "n": 256, "stderr": stderr, "normalized": None}


COMPARISON: Document = {
    "metric": "accuracy",
    "split": "test",
    "tasks": TASKS,
    "rows": [
        {"ref": "minilm", "values": {"emoji": cell(0.5), "language": cell(0.8)}, "normalized_average": 0.8},
        {"ref": "ckpt_1", "values": {"emoji": cell(0.7), "language": cell(0.9)}, "normalized_average": None},
        {"ref": "ckpt_2", "values": {"emoji": cell(0.6), "language": None}, "normalized_average": None},
    ],
}


def drawn(rows: list[Row]) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(draw_table(rows, TASKS, metric="accuracy", split="test"))
    return text.getvalue()


def test_rows_keep_the_order_of_tasks_and_take_the_labels_given() -> None:
    rows = read_rows(COMPARISON, {"ckpt_1": "merged"})

    assert [(row.label, row.values) for row in rows] == [
        ("minilm", (0.5, 0.8)),
        ("merged", (0.7, 0.9)),
        ("ckpt_2", (0.6, None)),
    ]


def test_a_row_with_a_gap_has_no_average() -> None:
    assert [row.average for row in read_rows(COMPARISON)] == [pytest.approx(0.65), pytest.approx(0.8), None]


def test_specialists_take_each_task_from_its_own_expert() -> None:
    rows = {"e": Row("e", (0.9, 0.1), (0.01, 0.02)), "l": Row("l", (0.2, 0.8), (0.03, 0.04))}

    row = individual_row(rows, TASKS, {"emoji": "e", "language": "l"})

    assert (row.values, row.errors, row.normalized) == ((0.9, 0.8), (0.01, 0.04), 1.0)


def test_the_table_shows_percent_standard_errors_and_a_dash_for_what_was_not_measured() -> None:
    text = drawn(read_rows(COMPARISON))

    assert "50.0 ±2.0" in text
    assert "65.0" in text
    assert "–" in text
    assert "of individual" in text


def test_the_table_leaves_out_what_no_row_has() -> None:
    assert "of individual" not in drawn([Row("a", (0.5, 0.5), (None, None))])


def test_words_name_the_best_and_how_far_above_the_others_it_is() -> None:
    assert describe(read_rows(COMPARISON), n_tasks=2) == [
        "ckpt_1 is best on the mean of 2 tasks: 80.0 %.",
        "ckpt_1 is 15.0 points above minilm.",
        "Not measured on every task yet: ckpt_2.",
    ]


def test_words_about_nothing_measured_say_only_that() -> None:
    assert describe([Row("a", (None,), (None,))], n_tasks=1) == ["Not measured on every task yet: a."]


def test_points_between_rows_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be measured on every task"):
        points(Row("a", (0.5,), (None,)), Row("b", (None,), (None,)))


def test_where_lower_is_better_the_lowest_leads_and_nothing_is_percent() -> None:
    rows = [Row("base", (20.0, 8.25), (1.5, 0.25)), Row("merged", (10.0, 4.5), (None, None))]
    scale = read_scale({"unit": "perplexity", "higher_is_better": False})
    text = io.StringIO()
    Console(file=text, width=120).print(draw_table(rows, TASKS, metric="perplexity", split="test", scale=scale))

    assert "perplexity on test" in text.getvalue()
    assert "8.25 ±0.25" in text.getvalue()
    assert describe(rows, n_tasks=2, scale=scale) == [
        "merged is best on the mean of 2 tasks: 7.25.",
        "merged is better than base.",
    ]


def test_what_was_learned_on_the_inputs_is_marked_and_explained() -> None:
    plain = drawn([Row("merged", (0.5, 0.8), (None, None))])
    marked = drawn([Row("merged", (0.5, 0.8), (None, None), learned_on=(True, False))])

    assert "*" not in plain
    assert "50.0*" in marked
    assert "80.0*" not in marked
    assert "* learned on these inputs" in marked


def test_what_a_sweep_chose_by_is_marked_on_that_split_alone() -> None:
    tuned = {"tuned_on": [{"split": "validation", "tasks": ["emoji"]}]}
    values = {"emoji": cell(0.5, None) | tuned, "language": cell(0.8, None) | tuned}
    rows = [{"ref": "swept", "values": values}]

    chosen, other = (
        drawn(read_rows({"split": split, "tasks": TASKS, "rows": rows})) for split in ("validation", "test")
    )

    assert "50.0†" in chosen
    assert "80.0†" not in chosen
    assert "† chosen by these examples" in chosen
    assert "†" not in other
