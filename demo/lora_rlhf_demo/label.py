"""The tasks of one file: which comes next for a labeler, saving and taking back labels, and how labelers agree."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from lora_rlhf.data.labels import Agreement, ranking_agreement
from lora_rlhf.data.records import read_ranking_row
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Ranking, make_row
from lora_rlhf.stats.agreement import Alpha, alpha_of_rankings, alpha_of_ratings
from lora_rlhf_demo.label_value import Label, label_from_row, require_fit
from lora_rlhf_demo.people import PeopleFigures, people_figures
from lora_rlhf_demo.rows import Row, RowFile
from lora_rlhf_demo.tasks import Task

HELD_SECONDS = 1800.0  # how long a prompt that somebody was given counts as one that they will rank


@dataclass(frozen=True)
class Workload:
    """How much is given to whom. people_per_prompt: a prompt that so many have ranked is given to nobody else.

    quota: the most prompts that one labeler is given. names: who may label; empty: everybody.
    """

    people_per_prompt: int | None = None
    quota: int | None = None
    names: tuple[str, ...] = ()


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

    exam: tasks with known ranks, which a labeler does first. Rankings are saved in `rankings`; skipped tasks, the
    answers to the exam, ideal answers (as demonstrations) and the browsers of each name are saved in files beside it,
    so the reward model never sees the exam.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        rankings: RowFile,
        exam: Sequence[Task] = (),
        workload: Workload = Workload(),
    ) -> None:
        self.tasks, self.exam, self.rankings, self.workload = tasks, exam, rankings, workload
        self._tasks_by_id = {task.id: task for task in (*tasks, *exam)}
        self._given: dict[str, dict[str, float]] = {}  # {task: {labeler: when}}, since others may be at it now
        path = rankings.path
        self.skips, self.answers, self.ideals, self.browsers = (
            RowFile(path.with_name(f"{path.stem}.{name}.jsonl"))
            for name in ("skipped", "qualification", "demonstrations", "labelers")
        )

    def next_task(self, labeler: str) -> Task | None:
        """This labeler's next task: of the exam, then a new one, then a skipped one. None if all are done."""
        answered, skipped = self._num_rows_by_task(self.answers, labeler), self._num_rows_by_task(self.skips, labeler)
        for task in self.exam:
            if task.id not in answered and task.id not in skipped:
                return task
        open_tasks = self._open_tasks(labeler)
        num_people = self._num_people_by_task(labeler)
        # what others have begun comes first, so that there soon is something to agree on
        following = min(open_tasks, key=lambda task: (skipped[task.id], -num_people[task.id]), default=None)
        if following is not None:
            self._given.setdefault(following.id, {})[labeler] = time.monotonic()
        return following

    def _open_tasks(self, labeler: str) -> list[Task]:
        """The tasks that this labeler may still be given; never more than their quota."""
        ranked, num_people = self._num_rows_by_task(self.rankings, labeler), self._num_people_by_task(labeler)
        most = self.workload.people_per_prompt
        open_tasks = [
            task
            for task in self.tasks
            if task.id not in ranked
            and (not task.labelers or labeler in task.labelers)
            and (most is None or num_people[task.id] < most)
        ]
        num_ranked = sum(task.id in ranked for task in self.tasks)
        is_full = self.workload.quota is not None and num_ranked >= self.workload.quota
        return [] if is_full else open_tasks

    def _num_people_by_task(self, labeler: str) -> Counter[str]:
        """{task: how many others have ranked it, or were given it within the last half hour}; empty without overlap."""
        if self.workload.people_per_prompt is None:
            return Counter()
        people = {(str(row.get("task")), str(row.get("labeler"))) for row in self.rankings.rows()}
        now = time.monotonic()
        people |= {
            (task, name)
            for task, times in self._given.items()
            for name, given in times.items()
            if now - given < HELD_SECONDS
        }
        return Counter(task for task, name in people if name != labeler)

    def progress(self, labeler: str) -> Progress:
        """How many tasks this labeler has done."""
        answered, skipped = self._num_rows_by_task(self.answers, labeler), self._num_rows_by_task(self.skips, labeler)
        ranked = self._num_rows_by_task(self.rankings, labeler)
        num_done = sum(task.id in ranked for task in self.tasks)
        total = num_done + len(self._open_tasks(labeler))
        return Progress(
            num_done,
            total if self.workload.quota is None else min(total, max(self.workload.quota, num_done)),
            sum(task.id in skipped and task.id not in ranked for task in self.tasks),
            sum(task.id in answered or task.id in skipped for task in self.exam),
            len(self.exam),
        )

    def is_of_another_browser(self, labeler: str, browser: str) -> bool:
        """Whether rankings of this name came from other browsers alone: perhaps two people have one name."""
        browsers = {row.get("browser") for row in self.browsers.rows() if row.get("labeler") == labeler}
        return bool(browsers) and browser not in browsers

    def add_browser(self, labeler: str, browser: str) -> None:
        """Notes that this labeler uses this browser."""
        row = {"labeler": labeler, "browser": browser}
        self.browsers.add(row | {"saved": time.time()}, unless=lambda other: row.items() <= other.items())

    def save(self, labeler: str, task: Task, label: Label, seconds: float) -> bool:
        """Saves the label; it is on disk when this returns. UserError if it does not fit the task, OSError of the disk.

        Returns False, and saves nothing, if this labeler has ranked the task already: a page may be sent twice. An
        ideal answer is the best response of its ranking, and a demonstration. seconds: the time that the labeler took.
        """
        require_fit(task, label)
        is_exam = task.known_ranks is not None
        ideal = "" if is_exam else label.ideal.strip()
        responses, ranks, ended = task.responses, label.ranks, task.ended
        if ideal:
            responses, ranks = (*responses, ideal), (*(rank + 1 for rank in ranks), 1)
            ended = (*ended, True) if ended else ()
        row = make_row(Ranking(task.prompt, responses, ranks, labeler, ended)) | {
            "ratings": [*label.ratings, *([None] if ideal else [])],
            "flags": [*map(list, label.flags), *([[]] if ideal else [])],
            "prompt_flags": list(label.prompt_flags),
            "shown": list(task.display_order(labeler)),
            "seconds": round(seconds, 1),
        }
        extras = {"reasons": list(label.reasons), "comment": label.comment.strip(), "unread": list(label.unread)}
        row |= {name: value for name, value in extras.items() if value} | ({"has_ideal": True} if ideal else {})
        about = {"task": task.id, "labeler": labeler}
        file = self.answers if is_exam else self.rankings
        is_new = file.add(row | about | {"saved": time.time()}, unless=lambda other: about.items() <= other.items())
        if is_new and ideal:
            demonstration = make_row(Demonstration(task.prompt, ideal))
            self.ideals.add(demonstration | about, unless=lambda other: about.items() <= other.items())
        self._given.get(task.id, {}).pop(labeler, None)
        return is_new

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
        label = label_from_row(row, saved_ranking)
        if label.ideal:
            about = {"task": row["task"], "labeler": labeler}
            self.ideals.remove(lambda other: about.items() <= other.items())
        num_shown = len(label.ranks)
        return task or Task(
            saved_ranking.prompt, saved_ranking.responses[:num_shown], None, saved_ranking.ended[:num_shown]
        ), label

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

    def people(self) -> PeopleFigures:
        """What each labeler did, and where they disagree."""
        return people_figures(_readable_rankings(self.rankings.rows()))

    def remove_labeler(self, labeler: str, reason: str) -> tuple[int, Path]:
        """Moves all rankings of a labeler, and their demonstrations, into a file beside the rankings, with the reason.

        Returns how many rankings, and that file. They are written there first, so that nothing is lost by a kill.
        """

        def is_own(row: Row) -> bool:
            return row.get("labeler") == labeler

        removed = RowFile(self.rankings.path.with_name(f"{self.rankings.path.stem}.removed.jsonl"))
        for row in filter(is_own, [*self.rankings.rows(), *self.ideals.rows()]):
            removed.add(row | {"removed": time.time(), "reason": reason})
        self.ideals.remove(is_own)
        return len(self.rankings.remove(is_own)), removed.path

    def _num_rows_by_task(self, file: RowFile, labeler: str) -> Counter[str]:
        """{task: number of rows that this labeler has of it}."""
        return Counter(str(row.get("task")) for row in file.rows() if row.get("labeler") == labeler)


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
