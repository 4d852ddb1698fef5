"""The tasks of one file: which comes next for a labeler, saving and taking back labels, and how labelers agree."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from lora_rlhf.data.labels import Agreement, ranking_agreement
from lora_rlhf.data.records import read_ranking_row
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Ranking, make_row
from lora_rlhf.stats.agreement import Alpha, alpha_of_rankings, alpha_of_ratings
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.rows import Row, RowFile
from lora_rlhf_demo.tasks import FLAGS, PROMPT_FLAGS, RATINGS, Task


@dataclass(frozen=True)
class Label:
    """A labeler's ranks, ratings and flags for a task, in the order of its responses; a rating may be None."""

    ranks: tuple[int, ...]
    ratings: tuple[int | None, ...]
    flags: tuple[tuple[str, ...], ...]
    prompt_flags: tuple[str, ...] = ()


class Progress(NamedTuple):
    """A labeler's progress: `done` of `total` tasks are ranked, and `skipped` ones come at the end.

    exam_done, exam_total: the same of the qualification.
    """

    done: int
    total: int
    skipped: int
    exam_done: int
    exam_total: int


class Qualification(NamedTuple):
    """A labeler's agreement with the known answers: the share of `pairs` in the same order; a tie counts half."""

    rate: float | None
    pairs: int


class LabelerAgreement(NamedTuple):
    """How many labelers and rankings a file has, and how far the labelers agree."""

    labelers: int
    rankings: int
    pairs: Agreement
    preferences: Alpha
    ratings: Alpha


class Labelling:
    """The tasks of one file and their labels. Several people, and several servers, may label at the same time.

    exam: tasks with known ranks, which a labeler does first. Rankings are saved in `rankings`; skipped tasks and the
    answers to the exam are saved in two more files beside it, so the reward model never sees the exam.
    """

    def __init__(self, tasks: Sequence[Task], rankings: RowFile, exam: Sequence[Task] = ()) -> None:
        self.tasks, self.exam, self.rankings = tasks, exam, rankings
        self._tasks_by_id = {task.id: task for task in (*tasks, *exam)}
        path = rankings.path
        self.skips = RowFile(path.with_name(f"{path.stem}.skipped.jsonl"))
        self.answers = RowFile(path.with_name(f"{path.stem}.qualification.jsonl"))

    def next_task(self, labeler: str) -> Task | None:
        """This labeler's next task: of the exam, then a new one, then a skipped one. None if all are done."""
        answered, skipped = self._num_rows_by_task(self.answers, labeler), self._num_rows_by_task(self.skips, labeler)
        for task in self.exam:
            if task.id not in answered and task.id not in skipped:
                return task
        ranked = self._num_rows_by_task(self.rankings, labeler)
        remaining = (task for task in self.tasks if task.id not in ranked)
        return min(remaining, key=lambda task: skipped[task.id], default=None)

    def progress(self, labeler: str) -> Progress:
        """How many tasks this labeler has done."""
        answered, skipped = self._num_rows_by_task(self.answers, labeler), self._num_rows_by_task(self.skips, labeler)
        ranked = self._num_rows_by_task(self.rankings, labeler)
        return Progress(
            sum(task.id in ranked for task in self.tasks),
            len(self.tasks),
            sum(task.id in skipped and task.id not in ranked for task in self.tasks),
            sum(task.id in answered or task.id in skipped for task in self.exam),
            len(self.exam),
        )

    def save(self, labeler: str, task: Task, label: Label, seconds: float) -> None:
        """Saves the label; it is on disk when this returns. UserError if it does not fit the task, OSError of the disk.

        seconds: the time that the labeler took.
        """
        _require_fit(task, label)
        row = make_row(Ranking(task.prompt, task.responses, label.ranks, labeler)) | {
            "ratings": list(label.ratings),
            "flags": [list(flags) for flags in label.flags],
            "prompt_flags": list(label.prompt_flags),
            "shown": list(task.display_order(labeler)),
            "seconds": round(seconds, 1),
        }
        file = self.rankings if task.known_ranks is None else self.answers
        file.add(row | {"task": task.id, "saved": time.time()})

    def skip(self, labeler: str, task: Task) -> None:
        """Moves a task to the end; one of the exam does not come again. A task that is in no file is ignored."""
        if task.id in self._tasks_by_id:
            self.skips.add({"labeler": labeler, "task": task.id, "saved": time.time()})

    def undo_last(self, labeler: str) -> tuple[Task, Label | None] | None:
        """Removes this labeler's last row; returns its task, and its label unless it was a skip. None without a row."""

        def is_row_of_labeler(row: Row) -> bool:
            return row.get("labeler") == labeler and isinstance(row.get("task"), str)

        files = (self.rankings, self.skips, self.answers)
        last_times = {file: _last_saved_time(filter(is_row_of_labeler, file.rows())) for file in files}
        file = max(last_times, key=lambda file: last_times[file])
        row = file.remove_last(is_row_of_labeler) if last_times[file] > 0 else None
        if row is None:
            return None
        task = self._tasks_by_id.get(row["task"])
        if file is self.skips:
            return None if task is None else (task, None)
        saved_ranking = read_ranking_row(row)
        return task or Task(saved_ranking.prompt, saved_ranking.responses), _label_from_row(row, saved_ranking)

    def qualification(self, labeler: str) -> Qualification:
        """How a labeler's answers to the exam agree with the known ranks."""
        known_ranks_by_task = {task.id: task.known_ranks for task in self.exam}
        outcomes = []
        for row in self.answers.rows():
            known_ranks = known_ranks_by_task.get(str(row.get("task")))
            if row.get("labeler") != labeler or known_ranks is None or len(row["ranks"]) != len(known_ranks):
                continue
            for i, j in combinations(range(len(known_ranks)), 2):
                agreement_sign = (known_ranks[i] - known_ranks[j]) * (row["ranks"][i] - row["ranks"][j])
                if known_ranks[i] != known_ranks[j]:
                    outcomes.append(0.5 if agreement_sign == 0 else float(agreement_sign > 0))
        return Qualification(sum(outcomes) / len(outcomes) if outcomes else None, len(outcomes))

    def labeler_agreement(self) -> LabelerAgreement:
        """How far all labelers of the file agree."""
        rankings = list(_readable_rankings(self.rankings.rows()))
        names = {ranking.labeler for ranking in rankings if ranking.labeler is not None}
        return LabelerAgreement(
            len(names),
            len(rankings),
            ranking_agreement(rankings),
            alpha_of_rankings(rankings),
            alpha_of_ratings(rankings),
        )

    def _num_rows_by_task(self, file: RowFile, labeler: str) -> Counter[str]:
        """{task: number of rows that this labeler has of it}."""
        return Counter(str(row.get("task")) for row in file.rows() if row.get("labeler") == labeler)


def label_from_page(value: Mapping[str, Any], task: Task, labeler: str, prompt_flags: Sequence[str] = ()) -> Label:
    """The label that a page sends: from the order of display to the order of the task's responses.

    UserError for anything that the page itself would not send, since a browser may send any value.
    """
    order = task.display_order(labeler)
    if not isinstance(value, dict) or value.get("id") != task.id:
        raise UserError("This page shows another task by now; label the one shown.")
    columns = []
    for name in ("ranks", "ratings", "flags"):
        column = value.get(name)
        if not isinstance(column, list) or len(column) != len(order):
            raise UserError(f"The page sent {name} that do not fit the task; reload it.")
        columns.append(column)
    # responses[order[position]] is displayed at `position`
    positions = [order.index(index) for index in range(len(order))]
    ranks, ratings, flags = ([column[position] for position in positions] for column in columns)
    if not all(isinstance(names, list) for names in flags):
        raise UserError("The page sent flags that do not fit the task; reload it.")
    label = Label(tuple(ranks), tuple(ratings), tuple(map(tuple, flags)), tuple(prompt_flags))
    _require_fit(task, label)
    return label


def _require_fit(task: Task, label: Label) -> None:
    """UserError for a label that does not fit this task."""
    count = len(task.responses)
    if any(type(rank) is not int for rank in label.ranks):
        raise UserError("A rank is a whole number.")
    if len(label.ranks) != count or set(label.ranks) != set(range(1, len(set(label.ranks)) + 1)):
        raise UserError("Rank every response; the best has rank 1, and no rank is left out.")
    if any(rating is not None and (type(rating) is not int or rating not in RATINGS) for rating in label.ratings):
        raise UserError(f"A rating is a whole number from {RATINGS[0]} to {RATINGS[-1]}.")
    are_known = [isinstance(flag, str) and flag in FLAGS for flags in label.flags for flag in flags]
    are_known += [isinstance(flag, str) and flag in PROMPT_FLAGS for flag in label.prompt_flags]
    if len(label.ratings) != count or len(label.flags) != count or not all(are_known):
        raise UserError("Ratings or flags do not fit the task; reload the page.")


def _label_from_row(row: Row, saved_ranking: Ranking) -> Label:
    """The label that a saved row holds; fields that somebody has changed are left empty."""
    count = len(saved_ranking.responses)
    ratings, flags = row.get("ratings"), row.get("flags")
    return Label(
        saved_ranking.ranks,
        tuple(ratings) if isinstance(ratings, list) and len(ratings) == count else (None,) * count,
        tuple(map(tuple, flags)) if isinstance(flags, list) and len(flags) == count else ((),) * count,
        tuple(row.get("prompt_flags") or ()),
    )


def _last_saved_time(rows: Iterable[Row]) -> float:
    """Time at which the last of these rows was saved; 0 without rows."""
    return max((float(row["saved"]) for row in rows if isinstance(row.get("saved"), int | float)), default=0.0)


def _readable_rankings(rows: Iterable[Row]) -> Iterable[Ranking]:
    """The ranking of each row that holds one; the row is the metadata of its prompt."""
    for row in rows:
        try:
            ranking = read_ranking_row(row)
            yield replace(ranking, prompt=replace(ranking.prompt, meta=row))
        except (BadRow, KeyError):
            continue
