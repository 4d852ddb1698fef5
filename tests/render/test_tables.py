"""Tables as text: cells cannot break out of them, and columns stand below each other."""

from lora_rlhf.render.palette import DARK, LIGHT
from lora_rlhf.render.tables import align_columns, markdown_table, terminal_table, wrapped


def test_a_markdown_table_holds_whatever_its_cells_are_called() -> None:
    rows = [["x | y\nz", "1"], ["b", "-10"]]
    assert markdown_table(["name", "n"], rows).splitlines() == [
        "| name     |   n |",
        "| :------- | --: |",
        "| x \\| y z |   1 |",
        "| b        | -10 |",
    ]
    assert markdown_table(["name", "n"], rows, aligned=False).splitlines()[1:3] == [
        "| --- | --- |",
        "| x \\| y z | 1 |",
    ]


def test_columns_are_as_wide_as_asked_or_as_their_longest_cell() -> None:
    rows = [["a", "12", "b"], ["abc", "1", ""]]
    assert align_columns(rows, "<><", gap="  ") == ["a    12  b", "abc   1"]
    assert align_columns(rows, "<><", (4, 4, 1)) == ["a     12b", "abc    1"]


def test_a_terminals_table_folds_the_columns_that_do_not_fit() -> None:
    header = ["", "base", "sft", "policy"]
    rows = [["score", "1" * 30, "2" * 30, "3" * 30], ["length", "1", "2", "3"]]
    first, second = terminal_table(header, rows).split("\n\n")
    assert [line.split() for line in first.splitlines()] == [
        ["base", "sft"],
        ["score", "1" * 30, "2" * 30],
        ["length", "1", "2"],
    ]
    assert [line.split() for line in second.splitlines()] == [["policy"], ["score", "3" * 30], ["length", "3"]]
    assert max(map(len, first.splitlines())) == 6 + 2 * 32


def test_a_long_line_is_wrapped_at_spaces() -> None:
    lines = wrapped("word " * 30).splitlines()
    assert len(lines) == 2 and len(lines[0]) <= 80 and lines[1].startswith("  word")
    assert wrapped("x" * 100) == "x" * 100


def test_every_colour_has_both_shades() -> None:
    assert list(LIGHT) == list(DARK)
