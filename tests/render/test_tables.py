"""Tables as text: cells cannot break out of them, and columns stand below each other."""

from lora_rlhf.render.palette import DARK, LIGHT
from lora_rlhf.render.tables import align_columns, markdown_table


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


def test_every_colour_has_both_shades() -> None:
    assert list(LIGHT) == list(DARK)
