"""A labelling task: a prompt with its responses, from a file or just drawn, and their order on a labeler's page."""

import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_rlhf.data.messages import to_response
from lora_rlhf.data.refusals import BadRow, RefusedRows
from lora_rlhf.data.schema import Prompt, Ranking, require_ended
from lora_rlhf.data.sources import Source, read_rankings
from lora_rlhf.system.errors import UserError

MOST_RESPONSES = 9  # what one digit can rank
MAX_NAME_CHARACTERS = 40
MOST_ROWS, MOST_REFUSED = 250_000, 5_000  # of a file of tasks, which may be a stranger's

# What a labeler is asked of every response beside its rank and flags (InstructGPT, arXiv 2203.02155, table 3).
RATINGS = range(1, 8)

# Why the best answer is the best, in a word each.
REASONS = {
    "correct": "more correct",
    "complete": "more complete",
    "instructions": "follows the instruction better",
    "clear": "clearer",
    "concise": "says no more than needed",
    "safe": "safer",
    "tone": "better tone",
}


@dataclass(frozen=True)
class Task:
    """A prompt and 2 to 9 different responses. known_ranks: the right ranks, in a task that tests labelers.

    ended: whether each response ended by itself; empty where its file does not say. labelers: who may be given this
    task; empty: everybody.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    known_ranks: tuple[int, ...] | None = None
    ended: tuple[bool, ...] = ()
    labelers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.responses) <= MOST_RESPONSES:
            raise BadRow(f"there are not 2 to {MOST_RESPONSES} responses to rank", f"{len(self.responses)}")
        Ranking(self.prompt, self.responses, (1,) * len(self.responses))  # BadRow for what no ranking could hold

    @property
    def id(self) -> str:
        """A hash of the prompt and its responses, the same in every process."""
        turns = [[message.role, message.text] for message in self.prompt.messages]
        return hashlib.sha256(json.dumps([turns, self.responses]).encode()).hexdigest()[:16]

    def display_order(self, labeler: str) -> tuple[int, ...]:
        """Indices of the responses in the order of display: different for each labeler, the same after a reload.

        With one order for all, the reward model would learn the labelers' preference for the first position.
        """
        return tuple(random.Random(f"{labeler}\n{self.id}").sample(range(len(self.responses)), len(self.responses)))


def make_task(
    prompt: Prompt,
    responses: Sequence[str],
    known_ranks: tuple[int, ...] | None = None,
    ended: Sequence[bool] = (),
    labelers: tuple[str, ...] = (),
) -> Task:
    """Makes a task without empty and repeated responses. BadRow if fewer than 2 or more than 9 are left."""
    first_index: dict[str, int] = {}
    for index, response in enumerate(responses):
        if response.strip():
            first_index.setdefault(response.strip(), index)
    indices = tuple(first_index.values())
    task_ranks = None if known_ranks is None else tuple(known_ranks[index] for index in indices)
    task_ended = tuple(ended[index] for index in indices) if ended else ()
    return Task(prompt, tuple(responses[index] for index in indices), task_ranks, task_ended, labelers)


def read_tasks(path: Path) -> tuple[list[Task], RefusedRows]:
    """The distinct tasks of a file that `lora-rlhf sample` wrote, and the rows that could not be used.

    UserError for a file that cannot be read, or that holds no task, more than MOST_ROWS rows, or more than MOST_REFUSED
    that cannot be used.
    """
    source: Source[Prompt] = Source(str(path), "prompts", most_refused=MOST_REFUSED)
    tasks: dict[str, Task] = {}
    refused = RefusedRows(most=MOST_REFUSED)
    for prompt in source:
        if source.read > MOST_ROWS:
            raise UserError(f"{path.name}: more than {MOST_ROWS:,} rows; split the file, and label one part at a time")
        try:
            values = prompt.meta.get("responses")
            if not isinstance(values, list):
                raise BadRow("no responses to rank", "`lora-rlhf sample` writes them")
            meta = {name: value for name, value in prompt.meta.items() if name not in ("responses", "labelers")}
            responses = [to_response(value, "response") for value in values]
            ended = require_ended(meta.pop("ended", None), len(responses))
            labelers = _names_of_labelers(prompt.meta.get("labelers"))
            task = make_task(replace(prompt, meta=meta, origin=""), responses, None, ended, labelers)
        except BadRow as fault:
            refused.add(prompt.origin, fault)
        else:
            tasks.setdefault(task.id, task)
    refused.extend(source.refused)
    if not tasks:
        raise UserError(f"{path.name}: nothing to label. {refused.summary()}")
    return list(tasks.values()), refused


def _names_of_labelers(value: Any) -> tuple[str, ...]:
    """The column "labelers" of a row: who may be given it. BadRow for what is no list of names."""
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise BadRow("labelers is not a list of names", f"got {value!r:.60}")
    try:
        return tuple(parse_labeler_name(name) for name in value)
    except UserError as error:
        raise BadRow("labelers holds what is no name", str(error)) from error


def read_qualification(path: Path) -> list[Task]:
    """Reads tasks with known ranks. UserError for a file that holds none."""
    rankings, refused = read_rankings(str(path))
    tasks = list(_make_tasks(rankings))
    if not tasks:
        raise UserError(f"{path.name}: no ranking of 2 to {MOST_RESPONSES} responses in it. {refused.summary()}")
    return tasks


def _make_tasks(rankings: Sequence[Ranking]) -> Iterator[Task]:
    """A task for each ranking that has 2 to 9 different responses."""
    for ranking in rankings:
        try:
            yield make_task(replace(ranking.prompt, meta={}), ranking.responses, ranking.ranks)
        except BadRow:
            continue


def parse_labeler_name(text: Any) -> str:
    """Returns a labeler's name as it is saved. UserError for a text that is no name."""
    name = unicodedata.normalize("NFC", " ".join(str(text or "").split()))
    if not name:
        raise UserError("Write your name first.")
    if len(name) > MAX_NAME_CHARACTERS or not re.fullmatch(r"\w[\w .'@-]*", name):
        raise UserError(
            f"A name has 1 to {MAX_NAME_CHARACTERS} letters, digits, spaces or any of . ' @ - and begins with one of "
            "the first two."
        )
    return name
