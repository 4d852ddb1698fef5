"""Between `sample` and `reward`: a judge ranks the responses in place of people, under written principles.

Bai et al. (arXiv 2212.08073, section 4) call this AI feedback. The default principles follow the labeling
instructions of InstructGPT (arXiv 2203.02155, appendix B.2).
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lora_rlhf.configs.label import JudgeLabelConfig
from lora_rlhf.configs.marks import SAFE_TO_CHANGE_ON_RESUME, fields_with_mark
from lora_rlhf.configs.values import check
from lora_rlhf.data.labels import ranking_agreement
from lora_rlhf.data.messages import to_response
from lora_rlhf.data.outputs import require_output
from lora_rlhf.data.refusals import BadRow, RefusedRows, pluralize
from lora_rlhf.data.schema import Prompt, Ranking, make_row, require_ended
from lora_rlhf.data.sources import Source, read_rankings
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.choose import open_asker
from lora_rlhf.judges.listwise import ListJudge
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import ListTemplate, QuestionTemplate, RatingTemplate, read_criteria
from lora_rlhf.judges.rating import RatingJudge
from lora_rlhf.runs.folder import data_hash
from lora_rlhf.stages.best_of import report_path
from lora_rlhf.stages.interrupt import graceful
from lora_rlhf.stages.partial import PartialOutput, progress
from lora_rlhf.stats.agreement import agreement_with
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import Stopped, UserError
from lora_rlhf.system.plain_files import read_file

log = logging.getLogger("lora_rlhf")

PRINCIPLES = Path(__file__).parents[1] / "judges" / "principles.md"
PROMPTS_AT_A_TIME = {"pairwise": 8, "listwise": 32}
SUMMED = (
    *("cached", "without_usage", "seconds", "shortened", "pairs", "identical", "failures"),
    *("inconsistent", "inconsistent_for_first", "inconsistent_for_second"),
)  # counts of an attempt; those that are not here stand for all attempts already


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
    require_output("--to", config.to, [path for path in (config.responses, config.against) if path])
    if Path(config.to).exists() and not config.overwrite:
        raise UserError(f"{config.to} is there already; use --overwrite to replace it, or choose another --to")
    path = config.principles or str(PRINCIPLES)
    principles = read_criteria(path, "principles")
    principles_hash = hashlib.sha256(read_file(Path(path).expanduser(), follow_links=True)).hexdigest()
    tasks = _read_tasks(config.responses)
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
        safe = {*fields_with_mark(JudgeLabelConfig, SAFE_TO_CHANGE_ON_RESUME), "responses", "principles"}
        settings = {key: value for key, value in vars(config).items() if key not in safe}
        about = {"principles": principles_hash, "responses": data_hash(config.responses), **asker.model.identity()}
        self._partial = PartialOutput(config.to, {**settings, **about})
        self._earlier: dict[str, Any] = {"faults": {}}

    def rank_all(self, tasks: Sequence[Task], people: Sequence[Ranking] | None) -> dict[str, Any]:
        """Ranks what is not ranked yet, writes the rankings, and returns the report."""
        lines = self._partial.begin()
        rows: list[dict[str, Any] | None] = [row for line in lines for row in line.get("rows", ())]
        if lines:
            self._asker.counts.load_state_dict(lines[-1]["spent"])
            self._earlier = next((line["judge"] for line in reversed(lines) if "judge" in line), self._earlier)
            log.info("going on after %d prompts, which %s holds", len(rows), self._partial.path)
        if len(rows) < len(tasks):
            self._rank_rest(tasks, rows)
        found = [row for row in rows if row is not None]
        if not found:
            self._partial.path.unlink()  # an attempt with the same settings asks again
            raise UserError(
                f"--judge {self._config.judge}: {self._asker.model_name} failed on "
                f"{pluralize(len(tasks), 'prompt')}, which is all ({_faults_text(self._describe())}); "
                "choose another judge, or mend this one"
            )
        report: dict[str, Any] = {"prompts": len(tasks), "labeled": len(found), "failed": len(tasks) - len(found)}
        report |= {"question": self._config.question, "judge": self._describe()}
        if people is not None:
            own = [
                Ranking(task.prompt, task.responses, row["ranks"])
                for task, row in zip(tasks, rows, strict=True)
                if row is not None
            ]
            between = ranking_agreement(people)._asdict()
            report["agreement"] = {**agreement_with(own, people)._asdict(), "between_people": between}
        self._partial.finish(found)
        return report

    def _rank_rest(self, tasks: Sequence[Task], rows: list[dict[str, Any] | None]) -> None:
        """Appends a row, or None where the judge failed, for each task that has none yet. Stopped, see `label`."""
        step = PROMPTS_AT_A_TIME[self._config.question]
        bar = tqdm(total=len(tasks), initial=len(rows), desc="label", unit="prompt", disable=None)
        with graceful("group of prompts") as request, bar:
            try:
                if self._config.judge == "endpoint":
                    self._judge.check_easy_question()
                while len(rows) < len(tasks):
                    new_rows = self._rank(tasks[len(rows) : len(rows) + step])
                    if self._asker.counts.down:
                        faults = _faults_text(self._describe())
                        raise Stopped(f"the server did not answer at any try ({faults}). {progress(rows, tasks)}")
                    spent = self._asker.counts.state_dict()
                    self._partial.add({"rows": new_rows, "spent": spent, "judge": self._describe()})
                    rows += new_rows
                    bar.update(len(new_rows))
                    if request.is_made and len(rows) < len(tasks):
                        raise Stopped(progress(rows, tasks), request.exit_status)
            except (UserError, Stopped):  # what the last calls have cost counts for the budget of the next attempt
                self._partial.add({"spent": self._asker.counts.state_dict()})
                raise

    def _rank(self, tasks: Sequence[Task]) -> list[dict[str, Any] | None]:
        """The row of each task; None where the judge failed in any question."""
        rankings = self._judge.rank([(task.prompt, [text.strip() for text in task.responses]) for task in tasks])
        rows = [
            None if ranks is None else self._row(Ranking(*task[:2], ranks, self._asker.model_name, task.ended))
            for task, ranks in zip(tasks, rankings, strict=True)
        ]
        if self._rating is None:
            return rows
        answers = [
            (task.prompt, text.strip())
            for task, row in zip(tasks, rows, strict=True)
            for text in task.responses
            if row is not None
        ]
        ratings = iter(self._rating.rate(answers))
        for index, row in enumerate(rows):
            if row is not None:
                row["ratings"] = [next(ratings) for _ in row["responses"]]
                rows[index] = None if None in row["ratings"] else row
        return rows

    def _row(self, ranking: Ranking) -> dict[str, Any]:
        """The row of a ranking, which says who labelled by what."""
        return make_row(ranking) | {"judge": self._config.judge, "principles": self._principles_hash}

    def _describe(self) -> dict[str, Any]:
        """The judge's identity and counts, those of earlier attempts included."""
        now, earlier = self._judge.describe(), self._earlier
        summed = {name: round(now[name] + earlier.get(name, 0), 2) for name in SUMMED if name in now}
        about = {**now, **summed, "faults": dict(Counter(now["faults"]) + Counter(earlier["faults"]))}
        if "pairs" in about:
            num_judged = about["pairs"] - about["identical"] - about["failures"]
            about["inconsistent_share"] = about["inconsistent"] / num_judged if num_judged else None
        return about


def _faults_text(about: dict[str, Any]) -> str:
    return ", ".join(f"{fault}: {count}" for fault, count in about["faults"].items()) or "no fault in a reply"


def _read_tasks(path: str) -> list[Task]:
    """The tasks of a file that `sample` wrote. UserError if there is none; other rows are left out with a warning."""
    source: Source[Prompt] = Source(path, "prompts")
    tasks, refused = [], RefusedRows()
    for prompt in source:
        try:
            tasks.append(_to_task(prompt))
        except BadRow as fault:
            refused.add(prompt.origin, fault)
    refused.extend(source.refused)
    if not tasks:
        raise UserError(f"{path}: nothing to rank. {refused.summary()}")
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
    return tasks


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
