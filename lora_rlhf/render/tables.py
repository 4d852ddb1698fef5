"""Tables as text: in Markdown, and in columns for a terminal."""

from collections.abc import Sequence

Row = Sequence[str]


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


def _column_widths(rows: Sequence[Row]) -> list[int]:
    """The number of characters of each column's longest cell."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
