from xml.etree import ElementTree

import pytest

from workers.pipelines.heatmap import CELL, MAX_WRITTEN, draw_heatmap

SVG = "{http://www.w3.org/2000/svg}"


def cells(document: str) -> list[str]:
    root = ElementTree.fromstring(document)
    return [str(rect.get("fill")) for rect in root.iter(f"{SVG}rect") if rect.get("width") == str(CELL)]


def texts(document: str) -> list[str]:
    return [str(text.text) for text in ElementTree.fromstring(document).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("value", "color"),
    [(0.0, "#ffffff"), (1.0, "#b2182b"), (-1.0, "#2166ac"), (0.5, "#d88c95"), (1.5, "#b2182b"), (None, "#cccccc")],
)
def test_color_goes_from_blue_over_white_to_red(value: float | None, color: str) -> None:
    assert cells(draw_heatmap("t", ["a"], [[value]])) == [color]


def test_title_labels_and_numbers_are_written() -> None:
    found = texts(draw_heatmap("Cosines", ["a", "b"], [[1.0, -0.126], [None, 1.0]]))
    assert found == ["Cosines", "a", "a", "b", "b", "1.00", "-0.13", "–", "1.00"]


def test_labels_are_escaped_and_cut() -> None:
    found = texts(draw_heatmap("<&>", ['<script>"&', "x" * 40], [[1.0, 0.0], [0.0, 1.0]]))
    assert found[0] == "<&>"
    assert found[1] == '<script>"&'
    assert found[3] == "x" * 23 + "…"


def test_large_matrices_carry_no_numbers() -> None:
    n = MAX_WRITTEN + 1
    document = draw_heatmap("t", ["m"] * n, [[0.5] * n for _ in range(n)])
    assert len(cells(document)) == n * n
    assert "0.50" not in texts(document)
