"""The names of a row's columns as formats know them: other spellings are corrected, and --columns renames the rest."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lora_rlhf.data.formats import KNOWN_COLUMNS, SPELLINGS
from lora_rlhf.data.names import IGNORED_PREFIX, fold_name
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.system.errors import UserError

IGNORE = "ignore"
# Names that --columns can give to a column, beside the columns of the formats.
EXTRA_COLUMNS = ("system", "history", "context", "label", "score")


class Columns:
    """What --columns says: `prompt=question,response=answer,ignore=label` renames two columns and ignores one."""

    def __init__(self, text: str | None) -> None:
        self.known_name_by_column: dict[str, str] = {}  # the file's name: the name that formats know
        self.ignored_columns: set[str] = set()
        for item in [] if text is None else text.split(","):
            known_name, equals, column = (part.strip() for part in item.partition("="))
            if not equals or not known_name or not column:
                raise UserError(f"--columns {text}: {item!r} is not NAME=COLUMN, such as prompt=question")
            if known_name == IGNORE:
                self.ignored_columns.add(column)
            elif known_name not in KNOWN_COLUMNS and known_name not in EXTRA_COLUMNS:
                examples = (
                    "prompt, response, chosen, rejected, messages, text, responses, ranks, system, history, context"
                )
                raise UserError(
                    f"--columns {text}: {known_name!r} is no column that is read; such are {examples}, {IGNORE}"
                )
            else:
                self.known_name_by_column[column] = known_name

    def rename_columns(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the names that formats know. BadRow if it lacks a column that --columns names."""
        names = tuple(row)
        if self.known_name_by_column or self.ignored_columns:
            for name in self.known_name_by_column:
                if name not in row:
                    raise BadRow("--columns names a column that the row lacks", repr(name)[:40])
            new_names = {known_name for name, known_name in self.known_name_by_column.items() if name != known_name}
            row = {
                self.known_name_by_column.get(
                    name, IGNORED_PREFIX + name if name in self.ignored_columns or name in new_names else name
                ): value
                for name, value in row.items()
            }
            names = tuple(row)
        renames = _spelling_corrections(names)
        if renames is None:
            return row
        return {renames.get(name, name): value for name, value in row.items()}


@lru_cache(maxsize=1024)
def _spelling_corrections(names: tuple[str, ...]) -> Mapping[str, str] | None:
    """{name: the known name that it is another spelling of}; None if there is nothing to correct."""
    renames: dict[str, str] = {}
    for name in names:
        known_name = SPELLINGS.get(fold_name(name))
        if known_name is None or name in KNOWN_COLUMNS:
            continue
        if known_name in names or known_name in renames.values():
            raise BadRow("two columns have the same name but for its spelling", f"{known_name} and {name}"[:80])
        renames[name] = known_name
    return renames or None
