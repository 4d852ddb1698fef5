"""Readers of formats whose rows label the steps of an answer: TRL's, PRM800K's and Math-Shepherd's."""

import re
from typing import Any

from lora_rlhf.data.messages import Row, parse_list_in_text, to_prompt_turns
from lora_rlhf.data.readers import Draft
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Turns
from lora_rlhf.data.verdicts import is_blank

WHOLE_ANSWERS = ("response", "completion")  # columns that may hold the answer beside its steps
PRM800K_LABELS = {1: True, 0: True, -1: False, None: None}  # neutral counts as good (arXiv 2305.20050, appendix F)
PRM800K_END = "# Answer"  # stands in the last step of an answer that ended
SHEPHERD_MARK = "ки"  # ends each step
FIRST_STEP = re.compile(r"\s*\bStep 1\s*:")


def read_steps(row: Row, prompt_column: str, steps_column: str, labels_column: str) -> list[Draft]:
    """Drafts: the steps of an answer, and for each true, false (or 1, 0), or null where nobody judged it."""
    steps, labels = (_to_list(row[name], name) for name in (steps_column, labels_column))
    if len(steps) != len(labels):
        raise BadRow("labels and steps differ in number", f"{len(labels)} labels and {len(steps)} steps")
    for number, label in enumerate(labels, start=1):
        if label is not None and (not isinstance(label, int | float) or label not in (0, 1)):
            raise BadRow("a step's label is not true, false or null", f"step {number}: {label!r:.40}")
    for name in WHOLE_ANSWERS:
        if not is_blank(row.get(name)):
            _require_joined(steps, row[name], name)
    ended = row.get("ended")
    if ended is not None and type(ended) is not bool:
        raise BadRow("ended is not true or false", f"got {ended!r:.40}")
    turns = to_prompt_turns(row[prompt_column], prompt_column)
    return [_draft(turns, steps, [None if label is None else bool(label) for label in labels], ended is not False)]


def _draft(turns: Turns, steps: list[Any], labels: list[bool | None], has_ended: bool) -> Draft:
    return Draft(turns, tuple(steps), tuple(labels), ended=has_ended)


def _to_list(value: Any, name: str) -> list[Any]:
    value = parse_list_in_text(value, name)
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name} is not a list", f"got {type(value).__name__}")
    return list(value)


def _require_joined(steps: list[Any], answer: Any, name: str) -> None:
    """BadRow, with the first step that is not in its place, unless the steps make up the answer, white space aside."""
    rest = "".join(answer.split()) if isinstance(answer, str) else ""
    for number, step in enumerate(steps, start=1):
        text = "".join(step.split()) if isinstance(step, str) else ""
        if not rest.startswith(text):
            raise BadRow(f"the steps do not join to the {name}", f"step {number}: {step!r:.60}")
        rest = rest.removeprefix(text)
    if rest:
        raise BadRow(f"the steps do not join to the {name}", f"no step holds its end: {rest[:40]!r}")


# ---------------------------------------------------------------------------------------------------------------------
# PRM800K


def is_prm800k(row: Row) -> bool:
    """Whether `label` holds PRM800K's rated steps."""
    return isinstance(row["label"], dict) and "steps" in row["label"]


def read_prm800k_prompt(row: Row, question_column: str, *others: str) -> list[Turns]:
    """Prompts: PRM800K's problem."""
    question = row[question_column]
    return [to_prompt_turns(question.get("problem") if isinstance(question, dict) else question, question_column)]


def read_prm800k(row: Row, question_column: str, label_column: str) -> list[Draft]:
    """Drafts: the answer that was gone on with, and one for each other completion of a step, judged at its last step.

    A step that a person wrote is good. A step without a rating has no label.
    """
    (turns,) = read_prm800k_prompt(row, question_column)
    path: list[str] = []
    labels: list[bool | None] = []
    drafts: list[Draft] = []
    for number, step in enumerate(_to_list(row[label_column]["steps"], "label.steps"), start=1):
        if not isinstance(step, dict):
            raise BadRow("a step of label.steps is not an object", f"step {number}: got {type(step).__name__}")
        chosen = step.get("chosen_completion")
        rated = [_rated(one, number) for one in _to_list(step.get("completions") or [], "completions")]
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(rated)):
            raise BadRow("chosen_completion names no completion", f"step {number}: {chosen!r:.20} of {len(rated)}")
        for index, (text, rating) in enumerate(rated):
            if index != chosen and rating is not None:
                unlabelled = [None] * len(path)  # the steps before it are judged in the path itself
                drafts.append(_draft(turns, [*path, text], [*unlabelled, rating], PRM800K_END in text))
        if chosen is not None:
            text, rating = rated[chosen]
        elif step.get("human_completion"):
            text, rating = _rated(step["human_completion"], number)[0], True
        else:
            break
        path.append(text)
        labels.append(rating)
    if any(label is not None for label in labels):
        drafts.append(_draft(turns, path, labels, PRM800K_END in path[-1]))
    if not drafts:
        raise BadRow("no step has a label")
    return drafts


def _rated(completion: Any, number: int) -> tuple[str, bool | None]:
    """(text, label) of a completion of a step. BadRow for another rating than -1, 0, 1 or none."""
    if not isinstance(completion, dict) or not isinstance(completion.get("text"), str):
        raise BadRow("a completion of a step has no text", f"step {number}")
    rating = completion.get("rating")
    if isinstance(rating, bool | str | list | dict) or rating not in PRM800K_LABELS:
        raise BadRow("a step's rating is not -1, 0 or 1", f"step {number}: {rating!r:.40}")
    return completion["text"], PRM800K_LABELS[rating]


# ---------------------------------------------------------------------------------------------------------------------
# Math-Shepherd


def is_math_shepherd(row: Row) -> bool:
    """Whether `input` holds steps that end with Math-Shepherd's mark."""
    return isinstance(row["input"], str) and SHEPHERD_MARK in row["input"]


def _split_shepherd(row: Row, input_column: str) -> tuple[Turns, str]:
    """The problem, and its marked answer, which begins with "Step 1:"."""
    found = FIRST_STEP.search(row[input_column])
    if found is None:
        raise BadRow("the answer does not begin with Step 1:", f"{input_column} is {row[input_column][:40]!r}")
    return to_prompt_turns(row[input_column][: found.start()], input_column), row[input_column][found.start() :]


def read_math_shepherd_prompt(row: Row, input_column: str, *others: str) -> list[Turns]:
    """Prompts: the problem before the first step."""
    return [_split_shepherd(row, input_column)[0]]


def read_math_shepherd(row: Row, input_column: str, label_column: str) -> list[Draft]:
    """Drafts: the same text in two columns; where the first has a mark, the second has + or -, the step's label."""
    turns, marked = _split_shepherd(row, input_column)
    *steps, rest = marked.split(SHEPHERD_MARK)
    if rest.strip():
        raise BadRow("the last step has no mark", f"after step {len(steps)}: {rest.strip()[:40]!r}")
    labelled, labels = row[label_column], []
    if not isinstance(labelled, str):
        raise BadRow(f"{label_column} is not text", f"got {type(labelled).__name__}")
    place = row[input_column].index(marked)
    if labelled[:place] != row[input_column][:place]:
        raise BadRow("the steps do not join to the label's text", "the problem before step 1 differs")
    for number, step in enumerate(steps, start=1):
        if labelled[place : place + len(step)] != step:
            raise BadRow("the steps do not join to the label's text", f"step {number}: {step.strip()[:60]!r}")
        place += len(step)
        if labelled[place : place + 1] not in ("+", "-"):
            raise BadRow("a step's label is not + or -", f"step {number}: {labelled[place : place + 1]!r}")
        labels.append(labelled[place] == "+")
        place += 1
    if labelled[place:].strip():
        raise BadRow("the steps do not join to the label's text", f"after step {len(steps)}: {labelled[place:][:40]!r}")
    return [_draft(turns, [step.strip() for step in steps], list(labels), True)]
