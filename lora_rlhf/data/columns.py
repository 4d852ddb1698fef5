"""The names of a row's columns as formats know them: other spellings are corrected, and --columns renames the rest."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lora_rlhf.data.formats import KNOWN_COLUMNS, SPELLINGS
from lora_rlhf.data.names import IGNORED, folded
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.system.errors import UserError

IGNORE = "ignore"
# What a column can be called by --columns, beside the columns of the formats.
ROLES = ("system", "history", "context", "label", "score")


class Columns:
    """What --columns says: `prompt=question,response=answer,ignore=label` renames two columns and ignores one."""

    def __init__(self, text: str | None) -> None:
        self.renamed: dict[str, str] = {}  # the file's name: the name that formats know
        self.ignored: set[str] = set()
        for item in [] if text is None else text.split(","):
            role, equals, name = (part.strip() for part in item.partition("="))
            if not equals or not role or not name:
                raise UserError(f"--columns {text}: {item!r} is not NAME=COLUMN, such as prompt=question")
            if role == IGNORE:
                self.ignored.add(name)
            elif role not in KNOWN_COLUMNS and role not in ROLES:
                common = (
                    "prompt, response, chosen, rejected, messages, text, responses, ranks, system, history, context"
                )
                raise UserError(f"--columns {text}: {role!r} is no column that is read; such are {common}, {IGNORE}")
            else:
                self.renamed[name] = role

    def apply(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with the columns' known names. BadRow if --columns names one that it lacks."""
        names = tuple(row)
        if self.renamed or self.ignored:
            for name in self.renamed:
                if name not in row:
                    raise BadRow("--columns names a column that the row lacks", repr(name)[:40])
            taken = {role for name, role in self.renamed.items() if name != role}
            row = {
                self.renamed.get(name, IGNORED + name if name in self.ignored or name in taken else name): value
                for name, value in row.items()
            }
            names = tuple(row)
        renames = _spellings(names)
        if renames is None:
            return row
        return {renames.get(name, name): value for name, value in row.items()}


@lru_cache(maxsize=1024)
def _spellings(names: tuple[str, ...]) -> Mapping[str, str] | None:
    """{a name: the known name that it is another spelling of}; None if there is none."""
    renames: dict[str, str] = {}
    for name in names:
        known = SPELLINGS.get(folded(name))
        if known is None or name in KNOWN_COLUMNS:
            continue
        if known in names or known in renames.values():
            raise BadRow("two columns have the same name but for its spelling", f"{known} and {name}"[:80])
        renames[name] = known
    return renames or None
