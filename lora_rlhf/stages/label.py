"""Between `sample` and `reward`: a judge ranks the responses in place of people, under written principles.

Bai et al. (arXiv 2212.08073, section 4) call this AI feedback. The default principles follow the labeling
instructions of InstructGPT (arXiv 2203.02155, appendix B.2).
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lora_rlhf.configs.label import JudgeLabelConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.labels import FLAGS, PROMPT_FLAGS, ranking_agreement
from lora_rlhf.data.messages import to_response
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt, Ranking, make_row, require_ended
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.choose import open_asker
from lora_rlhf.judges.listwise import ListJudge
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import (
    FlagTemplate,
    ListTemplate,
    PromptFlagTemplate,
    QuestionTemplate,
    RatingTemplate,
    read_flags,
)
from lora_rlhf.judges.rating import AnswerJudge, RatingJudge
from lora_rlhf.stages.best_of import report_path
from lora_rlhf.stages.judging import JudgedRows, Row, judged_from, read_items, read_principles, require_new_output
from lora_rlhf.stats.agreement import agreement_with
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

PROMPTS_AT_A_TIME = {"pairwise": 8, "listwise": 32}


class Task(NamedTuple):
    """A prompt and its distinct responses, none of them empty. ended: as in `Ranking`."""

    prompt: Prompt
    responses: tuple[str, ...]
    ended: tuple[bool, ...]


def label(config: JudgeLabelConfig) -> dict[str, Any]:
    """Writes the judge's rankings, and a report beside them, which is returned.

    What is done stands in a file beside `to` until all is: an attempt that ended goes on there. A prompt on which the
    judge fails in any question is left out and counted. UserError for files and judges that cannot be used, and if the
    judge failed on every prompt; Stopped by a signal, or by a server that does not answer any more.
    """
    check(config)
    require_new_output(config, config.responses, config.against)
    principles, principles_hash = read_principles(config.principles)
    tasks = read_items(config.responses, _to_task, "rank")
    people = None if config.against is None else _read_people(config.against, tasks)
    asker = open_asker(config, config.judge, "judge", config.to, config.device, config.trust_remote_code)
    labelling = _Labelling(config, asker, principles, principles_hash)
    try:
        report = labelling.rank_all(tasks, people)
    finally:
        asker.model.close()
    report = {"principles": {"file": config.principles or "built-in", "sha256": principles_hash}, **report}
    write_json(report_path(config.to), report)
    return report


class _Labelling:
    """The judge with its principles, and the file of what is done."""

    def __init__(self, config: JudgeLabelConfig, asker: Asker, principles: str, principles_hash: str) -> None:
        self._config, self._asker, self._principles_hash = config, asker, principles_hash
        self._judge: PairwiseJudge | ListJudge
        if config.question == "pairwise":
            self._judge = PairwiseJudge(asker, QuestionTemplate(principles))
        else:
            self._judge = ListJudge(asker, ListTemplate(principles))
        self._rating = RatingJudge(asker, RatingTemplate(principles)) if config.ratings else None
        self._flags = _FlagJudges(asker) if config.flags else None
        made_from = judged_from(config, asker, principles_hash)
        self._judged = JudgedRows(config.to, asker, made_from, self._judge.describe, "label")

    def rank_all(self, tasks: Sequence[Task], people: Sequence[Ranking] | None) -> dict[str, Any]:
        """Ranks what is not ranked yet, writes the rankings, and returns the report."""
        rows = self._judged.make(tasks, PROMPTS_AT_A_TIME[self._config.question], self._rank)
        found = [row for row in rows if row is not None]
        report: dict[str, Any] = {"prompts": len(tasks), "labeled": len(found), "failed": len(tasks) - len(found)}
        report |= {"question": self._config.question, "judge": self._judged.describe()}
        if people is not None:
            own = [
                Ranking(task.prompt, task.responses, row["ranks"])
                for task, row in zip(tasks, rows, strict=True)
                if row is not None
            ]
            between = ranking_agreement(people)._asdict()
            report["agreement"] = {**agreement_with(own, people)._asdict(), "between_people": between}
        self._judged.finish(found)
        return report

    def _rank(self, tasks: Sequence[Task]) -> list[dict[str, Any] | None]:
        """The row of each task; None where the judge failed in any question."""
        if self._config.judge == "endpoint":
            self._judge.check_easy_question()
        rankings = self._judge.rank([(task.prompt, [text.strip() for text in task.responses]) for task in tasks])
        rows = [
            None if ranks is None else self._row(Ranking(*task[:2], ranks, self._asker.model_name, task.ended))
            for task, ranks in zip(tasks, rankings, strict=True)
        ]
        if self._rating is not None:
            _add_column(rows, tasks, "ratings", self._rating.rate)
        if self._flags is not None:
            _add_column(rows, tasks, "flags", self._flags.of_answers)
            self._flags.add_prompt_flags(rows, tasks)
        return rows

    def _row(self, ranking: Ranking) -> dict[str, Any]:
        """The row of a ranking, which says who labelled by what."""
        return make_row(ranking) | {"judge": self._config.judge, "principles": self._principles_hash}


class _FlagJudges:
    """Asks which flags hold of answers, and of prompts."""

    def __init__(self, asker: Asker) -> None:
        self._answers = AnswerJudge(asker, FlagTemplate(), functools.partial(read_flags, known=FLAGS))
        self._prompts = AnswerJudge(asker, PromptFlagTemplate(), functools.partial(read_flags, known=PROMPT_FLAGS))

    def of_answers(self, answers: Sequence[tuple[Prompt, str]]) -> list[list[str] | None]:
        """The flags of each (prompt, answer); None where the judge failed."""
        return [_names(verdict) for verdict in self._answers.verdicts(answers)]

    def add_prompt_flags(self, rows: list[Row | None], tasks: Sequence[Task]) -> None:
        """Adds the flags of the prompts to their rows; a row becomes None where the judge failed."""
        asked = [(task.prompt, "") for task, row in zip(tasks, rows, strict=True) if row is not None]
        verdicts = iter(self._prompts.verdicts(asked))
        for index, row in enumerate(rows):
            if row is not None:
                row["prompt_flags"] = _names(next(verdicts))
                rows[index] = None if row["prompt_flags"] is None else row


def _names(verdict: str | None) -> list[str] | None:
    return None if verdict is None else [name for name in verdict.split(",") if name != "none"]


def _add_column(
    rows: list[Row | None],
    tasks: Sequence[Task],
    column: str,
    judge: Callable[[Sequence[tuple[Prompt, str]]], Sequence[Any]],
) -> None:
    """Adds the judge's value of each response to its row; a row becomes None where the judge failed on one."""
    pairs = zip(tasks, rows, strict=True)
    values = iter(
        judge([(task.prompt, text.strip()) for task, row in pairs if row is not None for text in task.responses])
    )
    for index, row in enumerate(rows):
        if row is not None:
            row[column] = [next(values) for _ in row["responses"]]
            rows[index] = None if None in row[column] else row


def _to_task(prompt: Prompt) -> Task:
    """The task of a row. BadRow for one without two different responses."""
    values = prompt.meta.get("responses")
    if not isinstance(values, list):
        raise BadRow("no responses to rank", "`lora-rlhf sample` writes them")
    meta = {name: value for name, value in prompt.meta.items() if name not in ("responses", "ended")}
    responses = [to_response(value, "response") for value in values]
    ended = require_ended(prompt.meta.get("ended"), len(responses))
    first_index: dict[str, int] = {}
    for index, text in enumerate(responses):
        if text.strip():  # a sampled response may be empty, or equal to another
            first_index.setdefault(text.strip(), index)
    if len(first_index) < 2:
        raise BadRow("a ranking needs at least 2 different responses", f"got {len(first_index)}")
    kept = tuple([responses[index] for index in first_index.values()])
    return Task(
        replace(prompt, meta=meta), kept, tuple([ended[index] for index in first_index.values()] if ended else ())
    )


def _read_people(path: str, tasks: Sequence[Task]) -> list[Ranking]:
    """People's rankings. UserError if they hold no two responses of any of these prompts."""
    people, refused = read_rankings(path)
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
    as_tied = [Ranking(task.prompt, task.responses, (1,) * len(task.responses)) for task in tasks]
    if not agreement_with(as_tied, people).pairs:
        raise UserError(
            f"--against {path}: it ranks no two of the responses in the file to label; give rankings of the same ones"
        )
    return people
