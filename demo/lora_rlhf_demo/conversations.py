"""Conversations of the Compare tab, kept per browser under the run, so that no click and no reload loses one."""

import hashlib
import json
import re
import secrets
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_rlhf.system.disk import json_line, new_file
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import make_folder, open_file, read_file
from lora_rlhf_demo.compare import Comparison, Turn
from lora_rlhf_demo.requests import ColumnAnswer, Settings, Token

FOLDER = "conversations"
MOST_LISTED = 200
TITLE_CHARACTERS = 70


class Conversations:
    """The conversations that one browser had with one run: a file each, with its title in the first line.

    browser: a secret that the browser keeps; whoever does not know it finds nothing. Without one nothing is kept.
    """

    def __init__(self, run_folder: Path, browser: str) -> None:
        self._folder: Path | None = None
        if re.fullmatch(r"[0-9a-f]{16,64}", browser):
            self._folder = run_folder / FOLDER / hashlib.sha256(browser.encode()).hexdigest()[:16]

    def save(self, comparison: Comparison) -> Comparison:
        """Saves it, and returns it with its id, which a new one gets now. OSError of the disk."""
        if self._folder is None or not comparison.turns:
            return comparison
        named = comparison if comparison.id else replace(comparison, id=secrets.token_hex(6))
        make_folder(self._folder.parent)
        make_folder(self._folder)
        title = " ".join(named.turns[0].question.split())[:TITLE_CHARACTERS]
        with new_file(self._path(named.id)) as file:
            file.write(json_line({"title": title, "turns": len(named.turns)}) + json_line(asdict(named)))
        return named

    def load(self, name: str) -> Comparison:
        """The conversation with this id. UserError if there is none that can be read."""
        try:
            _, body = read_file(self._path(name)).split(b"\n", 1)
            return _read_comparison(json.loads(body))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError("This conversation is no longer there, or cannot be read.") from error

    def list(self) -> list[tuple[str, str]]:
        """(title, id) of each, the newest first."""
        if self._folder is None or not self._folder.is_dir():
            return []
        paths = sorted(self._folder.glob("*.jsonl"), key=lambda path: -path.stat().st_mtime)
        return [(_title(path), path.stem) for path in paths[:MOST_LISTED]]

    def _path(self, name: str) -> Path:
        if self._folder is None or not re.fullmatch(r"[0-9a-f]{12}", name):
            raise ValueError(f"no conversation: {name!r:.40}")
        return self._folder / f"{name}.jsonl"


def _title(path: Path) -> str:
    """The title of a conversation, from its first line alone."""
    try:
        with open_file(path) as file:
            head = json.loads(file.readline(4096))
        return f"{head['title']} ({head['turns']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "(cannot be read)"


def _read_comparison(row: dict[str, Any]) -> Comparison:
    turns = tuple(map(_read_turn, row["turns"]))
    return Comparison(**{**row, "stages": tuple(row["stages"]), "turns": turns})


def _read_turn(row: dict[str, Any]) -> Turn:
    answers = tuple(
        ColumnAnswer(
            **{
                **answer,
                "tokens": tuple(Token(**token) for token in answer["tokens"]),
                "ids": tuple(answer.get("ids", ())),
            }
        )
        for answer in row["answers"]
    )
    values = {
        "stages": tuple(row["stages"]),
        "answers": answers,
        "settings": Settings(**row["settings"]),
        "ranks": None if row["ranks"] is None else tuple(row["ranks"]),
        "versions": tuple(map(_read_turn, row["versions"])),
    }
    return Turn(**(row | values))
