"""Tables as text: in Markdown, and in columns for a terminal."""

import textwrap
from collections.abc import Sequence

Row = Sequence[str]
TERMINAL_WIDTH = 80  # characters
GAP = "  "  # between the columns of a terminal's table


def markdown_table(header: Row, rows: Sequence[Row], aligned: bool = True) -> str:
    """A Markdown table. aligned: also aligns its source, the first column to the left and the others to the right."""
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (header, *rows)]
    rule = ["---"] * len(header)
    if aligned:
        first, *others = _column_widths(lines)
        rule = [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in others)]
        formats = [f"<{first}", *(f">{width}" for width in others)]
        lines = [list(map(format, line, formats)) for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def align_columns(rows: Sequence[Row], sides: str, widths: Sequence[int] = (), gap: str = "") -> list[str]:
    """Lines of text with aligned columns. sides: "<" (left) or ">" (right) for each column.

    widths: of the columns, in characters; without them, each column is as wide as its longest cell.
    """
    formats = [f"{side}{width}" for side, width in zip(sides, widths or _column_widths(rows), strict=True)]
    return [gap.join(map(format, row, formats)).rstrip() for row in rows]


def terminal_table(header: Row, rows: Sequence[Row]) -> str:
    """An aligned table of at most TERMINAL_WIDTH characters a line.

    Columns that do not fit stand in a further table below, which repeats the first column.
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    blocks: list[list[int]] = []  # indices of the columns of each table
    used = TERMINAL_WIDTH
    for index in range(1, len(columns)):
        if used + len(GAP) + widths[index] > TERMINAL_WIDTH:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(index)
        used += len(GAP) + widths[index]
    tables = [list(zip(*(columns[index] for index in block), strict=True)) for block in blocks]
    return "\n\n".join("\n".join(align_columns(table, "<" + ">" * (len(table[0]) - 1), gap=GAP)) for table in tables)


def wrapped(line: str) -> str:
    """A line of text in lines of at most TERMINAL_WIDTH characters, the later ones indented by two more."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, TERMINAL_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _column_widths(rows: Sequence[Row]) -> list[int]:
    """The number of characters of each column's longest cell."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
