"""Labelling: which task comes next for whom, what is saved, what is taken back, and how far labelers agree."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from lora_rlhf.data.labels import Agreement, agreement
from lora_rlhf.data.readers_ranked import ranking
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt, Ranking, row_of
from lora_rlhf.stats.agreement import Alpha, alpha_of_rankings, alpha_of_ratings
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.rows import Row, RowFile
from lora_rlhf_demo.tasks import FLAGS, PROMPT_FLAGS, RATINGS, Task


@dataclass(frozen=True)
class Label:
    """What a labeler says of a task, in the order of its responses; a rating is None where none was given."""

    ranks: tuple[int, ...]
    ratings: tuple[int | None, ...]
    flags: tuple[tuple[str, ...], ...]
    prompt_flags: tuple[str, ...] = ()


class Progress(NamedTuple):
    """How many tasks a labeler has ranked of how many; `skipped` wait at the end. Likewise in the qualification."""

    done: int
    total: int
    skipped: int
    exam_done: int
    exam_total: int


class Qualification(NamedTuple):
    """How a labeler ordered the `pairs` that the known answers order: `rate` of them alike, a tie counts half."""

    rate: float | None
    pairs: int


class Concord(NamedTuple):
    """How far the labelers of a file agree, and how many there are."""

    labelers: int
    rankings: int
    pairs: Agreement
    preferences: Alpha
    ratings: Alpha


class Labelling:
    """The tasks of one file, and what people make of them. Several people, and several servers, may go on at once.

    `exam`: tasks with known answers, which a labeler does first. What was ranked is in `rankings`; what was skipped,
    and the answers to the exam, are in files of their own beside it: the reward model never sees the exam.
    """

    def __init__(self, tasks: Sequence[Task], rankings: RowFile, exam: Sequence[Task] = ()) -> None:
        self.tasks, self.exam, self.rankings = tasks, exam, rankings
        self._known = {task.id: task for task in (*tasks, *exam)}
        path = rankings.path
        self.skips = RowFile(path.with_name(f"{path.stem}.skipped.jsonl"))
        self.answers = RowFile(path.with_name(f"{path.stem}.qualification.jsonl"))

    def next(self, labeler: str) -> Task | None:
        """What this labeler does now: the exam, then what is new to them, then what they skipped. None: all is done."""
        answered, skipped = self._of(self.answers, labeler), self._of(self.skips, labeler)
        for task in self.exam:
            if task.id not in answered and task.id not in skipped:
                return task
        done = self._of(self.rankings, labeler)
        left = (task for task in self.tasks if task.id not in done)
        return min(left, key=lambda task: skipped[task.id], default=None)

    def progress(self, labeler: str) -> Progress:
        """How far this labeler has come."""
        answered, skipped = self._of(self.answers, labeler), self._of(self.skips, labeler)
        done = self._of(self.rankings, labeler)
        return Progress(
            sum(task.id in done for task in self.tasks),
            len(self.tasks),
            sum(task.id in skipped and task.id not in done for task in self.tasks),
            sum(task.id in answered or task.id in skipped for task in self.exam),
            len(self.exam),
        )

    def save(self, labeler: str, task: Task, label: Label, seconds: float) -> None:
        """Adds the label, safely on disk when this returns. UserError for one that does not fit, OSError of the disk.

        seconds: that the labeler took.
        """
        _require_fit(task, label)
        row = row_of(Ranking(task.prompt, task.responses, label.ranks, labeler)) | {
            "ratings": list(label.ratings),
            "flags": [list(flags) for flags in label.flags],
            "prompt_flags": list(label.prompt_flags),
            "shown": list(task.order(labeler)),
            "seconds": round(seconds, 1),
        }
        rows = self.rankings if task.known is None else self.answers
        rows.add(row | {"task": task.id, "saved": time.time()})

    def skip(self, labeler: str, task: Task) -> None:
        """Puts a task off; one of the exam is left out, and one that is in no file forgotten."""
        if task.id in self._known:
            self.skips.add({"labeler": labeler, "task": task.id, "saved": time.time()})

    def undo(self, labeler: str) -> tuple[Task, Label | None] | None:
        """Takes back what this labeler did last: its task, and the label where there was one. None: nothing there."""

        def mine(row: Row) -> bool:
            return row.get("labeler") == labeler and isinstance(row.get("task"), str)

        latest = {file: _saved(filter(mine, file.rows())) for file in (self.rankings, self.skips, self.answers)}
        file = max(latest, key=lambda file: latest[file])
        row = file.take_back(mine) if latest[file] > 0 else None
        if row is None:
            return None
        task = self._known.get(row["task"])
        if file is self.skips:
            return None if task is None else (task, None)
        found = ranking(row)[0]
        return task or Task(found.prompt, found.responses), _label_of(row, found)

    def qualification(self, labeler: str) -> Qualification:
        """How a labeler's answers to the exam agree with the known ones."""
        known = {task.id: task.known for task in self.exam}
        outcomes = []
        for row in self.answers.rows():
            right = known.get(str(row.get("task")))
            if row.get("labeler") != labeler or right is None or len(row["ranks"]) != len(right):
                continue
            for one, other in combinations(range(len(right)), 2):
                order = (right[one] - right[other]) * (row["ranks"][one] - row["ranks"][other])
                if right[one] != right[other]:
                    outcomes.append(0.5 if order == 0 else float(order > 0))
        return Qualification(sum(outcomes) / len(outcomes) if outcomes else None, len(outcomes))

    def concord(self) -> Concord:
        """How far all labelers of the file agree."""
        rankings = list(_rankings(self.rankings.rows()))
        names = {ranking.labeler for ranking in rankings if ranking.labeler is not None}
        return Concord(
            len(names), len(rankings), agreement(rankings), alpha_of_rankings(rankings), alpha_of_ratings(rankings)
        )

    def _of(self, rows: RowFile, labeler: str) -> Counter[str]:
        """{task: how often this labeler has a row of it}."""
        return Counter(str(row.get("task")) for row in rows.rows() if row.get("labeler") == labeler)


def label_of(value: Mapping[str, Any], task: Task, labeler: str, prompt_flags: Sequence[str] = ()) -> Label:
    """What the page says of a task, brought from the order shown to that of its responses.

    UserError for anything that the page would not send: a browser can send what it likes.
    """
    order = task.order(labeler)
    if not isinstance(value, dict) or value.get("id") != task.id:
        raise UserError("This page shows another task by now; label the one shown.")
    columns = []
    for name in ("ranks", "ratings", "flags"):
        column = value.get(name)
        if not isinstance(column, list) or len(column) != len(order):
            raise UserError(f"The page sent {name} that do not fit the task; reload it.")
        columns.append(column)
    # responses[order[place]] was shown at `place`
    ranks, ratings, flags = ([column[order.index(own)] for own in range(len(order))] for column in columns)
    if not all(isinstance(own, list) for own in flags):
        raise UserError("The page sent flags that do not fit the task; reload it.")
    label = Label(tuple(ranks), tuple(ratings), tuple(map(tuple, flags)), tuple(prompt_flags))
    _require_fit(task, label)
    return label


def _require_fit(task: Task, label: Label) -> None:
    """UserError for a label that is none of this task."""
    count = len(task.responses)
    if any(type(rank) is not int for rank in label.ranks):
        raise UserError("A rank is a whole number.")
    if len(label.ranks) != count or set(label.ranks) != set(range(1, len(set(label.ranks)) + 1)):
        raise UserError("Rank every response; the best has rank 1, and no rank is left out.")
    if any(rating is not None and (type(rating) is not int or rating not in RATINGS) for rating in label.ratings):
        raise UserError(f"A rating is a whole number from {RATINGS[0]} to {RATINGS[-1]}.")
    fit = all(isinstance(flag, str) and flag in FLAGS for flags in label.flags for flag in flags)
    fit = fit and all(isinstance(flag, str) and flag in PROMPT_FLAGS for flag in label.prompt_flags)
    if len(label.ratings) != count or len(label.flags) != count or not fit:
        raise UserError("Ratings or flags do not fit the task; reload the page.")


def _label_of(row: Row, found: Ranking) -> Label:
    """The label that a row of ours holds; fields that somebody changed are left empty."""
    count = len(found.responses)
    ratings, flags = row.get("ratings"), row.get("flags")
    return Label(
        found.ranks,
        tuple(ratings) if isinstance(ratings, list) and len(ratings) == count else (None,) * count,
        tuple(map(tuple, flags)) if isinstance(flags, list) and len(flags) == count else ((),) * count,
        tuple(row.get("prompt_flags") or ()),
    )


def _saved(rows: Iterable[Row]) -> float:
    """When the last of these rows was saved; 0 without any."""
    return max((float(row["saved"]) for row in rows if isinstance(row.get("saved"), int | float)), default=0.0)


def _rankings(rows: Iterable[Row]) -> Iterable[Ranking]:
    for row in rows:
        try:
            found = ranking(row)[0]
            yield Ranking(Prompt(found.prompt.messages, row), found.responses, found.ranks, found.labeler)
        except (BadRow, KeyError):
            continue
