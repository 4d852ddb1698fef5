"""The settings of the tiny world's commands: its data files, its labelers, and a response to be scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lora_rlhf.configs.marks import COMMON, formerly, input_file
from lora_rlhf.tinyworld.requests import SKILLS, Request, find_request, possible_constraints

PROMPT_SETS = {
    False: ("demonstrations", "ranking_prompts", "ppo_prompts"),
    True: (
        "evaluation_prompts",
        "selection_prompts",
    ),  # held out: their combinations of task and entities are in no other file
}

MOST_REFUSALS = 100  # held-out questions that are to be declined or not: there are 128
MOST_PROBLEMS = 100_000  # of a file: there are some millions of them
MOST_WORKED, MOST_WORKED_HELD_OUT = 779, 189  # sums of five small numbers: so many there are


class _FilesToWrite:
    """Of a configuration with a folder, and with a field num_NAME for each file NAME.jsonl that is written there."""

    to: str

    @property
    def num_rows_by_set(self) -> dict[str, int]:
        """Name of each set -> how many rows it has."""
        return {name.removeprefix("num_"): count for name, count in vars(self).items() if name.startswith("num_")}

    @property
    def path_by_set(self) -> dict[str, Path]:
        """Name of each set -> the file that it is written to."""
        return {name: Path(self.to) / f"{name}.jsonl" for name in self.num_rows_by_set}

    def faults_of_files(self, most_by_set: Mapping[str, int] | None = None) -> list[str]:
        """An empty folder, and numbers of rows below 1, or above those of most_by_set."""
        faults = [] if self.to else ["to is empty; name a folder"]
        for name, count in self.num_rows_by_set.items():
            most = None if most_by_set is None else most_by_set[name]
            if count < 1 or (most is not None and count > most):
                faults.append(
                    f"num_{name} is {count}, must be " + ("at least 1" if most is None else f"from 1 to {most}")
                )
        return faults


@dataclass(frozen=True, kw_only=True)
class TinyworldConfig(_FilesToWrite):
    """Demonstrations, prompts and pretraining text of the tiny world; no prompt is in two files."""

    to: str
    """Folder to write to: demonstrations.jsonl, ranking_prompts.jsonl and so on."""
    seed: int = field(default=0, metadata=COMMON)
    """Other seeds draw other prompts, entities and writers."""
    num_demonstrations: int = 1500
    """Prompts answered by the writers."""
    num_ranking_prompts: int = 1200
    """Prompts whose sampled responses are to be ranked."""
    num_ppo_prompts: int = 3000
    """Prompts for PPO."""
    num_evaluation_prompts: int = 320
    """Prompts to compare the stages on; their combinations of task and entities are in no other file."""
    num_selection_prompts: int = 200
    """Prompts to choose each stage's best temperature on; held out like those for evaluation."""
    num_pretraining: int = 2000
    """Documents of the scrape that the base was pretrained on, for PPO-ptx."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        faults = self.faults_of_files()
        for is_held_out, names in PROMPT_SETS.items():
            # beyond half of all prompts the rare use cases run out, which changes the mixture
            total, max_prompts = sum(self.num_rows_by_set[name] for name in names), num_prompts(is_held_out) // 2
            if total > max_prompts:
                options = " + ".join(f"num_{name}" for name in names)
                faults.append(
                    f"{options} is {total}, must be at most {max_prompts}: the tiny world has no more prompts"
                )
        return faults


@dataclass(frozen=True, kw_only=True)
class ProblemsConfig(_FilesToWrite):
    """Problems of the tiny world whose answers code can check: sums, and limits on the form of the answer."""

    to: str
    """Folder to write to: demonstrations.jsonl, prompts.jsonl and held_out.jsonl."""
    seed: int = field(default=0, metadata=COMMON)
    """Other seeds draw other problems; the numbers that are held out stay the same."""
    num_demonstrations: int = 1500
    """Problems with answers, most of which are wrong or too long."""
    num_prompts: int = 2000
    """Problems with the columns that reward functions check: answer, and most or pattern."""
    num_held_out: int = 300
    """The same, of pairs of numbers that no other file has."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return self.faults_of_files(dict.fromkeys(self.num_rows_by_set, MOST_PROBLEMS))


@dataclass(frozen=True, kw_only=True)
class TracesConfig(_FilesToWrite):
    """Tool calls, questions about a given text, and questions to decline, of the tiny world, with their exact truth."""

    to: str
    """Folder to write to: demonstrations.jsonl, tools.jsonl and so on; and base, a tiny base that can write calls."""
    seed: int = field(default=0, metadata=COMMON)
    """Other seeds draw other rows; the questions that are held out stay the same."""
    num_demonstrations: int = 1500
    """Conversations to learn from."""
    num_tools: int = 120
    """The same, held out, for `evaluate --tools`."""
    num_grounded: int = 120
    """Questions about a text, held out, for `evaluate --grounded`."""
    num_refusals: int = 100
    """Questions to answer or to decline, held out, for `evaluate --refusals`."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return self.faults_of_files(dict.fromkeys(self.num_rows_by_set, MOST_PROBLEMS) | {"refusals": MOST_REFUSALS})


@dataclass(frozen=True, kw_only=True)
class WorkedConfig(_FilesToWrite):
    """Sums of five small numbers of the tiny world, worked out in steps that end with "."; each step has an exact label."""

    to: str
    """Folder to write to: demonstrations.jsonl, step_labels.jsonl, prompts.jsonl and held_out.jsonl."""
    seed: int = field(default=0, metadata=COMMON)
    """Other seeds draw other sums and errors; the sums that are held out stay the same."""
    num_demonstrations: int = 240
    """Sums with answers, many of which hold a wrong step."""
    num_step_labels: int = 240
    """The same with a label for each step: for `reward --steps FILE --step_end .`."""
    num_prompts: int = 240
    """Sums alone, with the column answer, which reward functions check."""
    num_held_out: int = 150
    """The same, of sums that no other file has."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        faults = self.faults_of_files()
        seen = sum(count for name, count in self.num_rows_by_set.items() if name != "held_out")
        if seen > MOST_WORKED or self.num_held_out > MOST_WORKED_HELD_OUT:
            faults.append(
                f"there are {MOST_WORKED} such sums and {MOST_WORKED_HELD_OUT} held out; wanted are {seen} and "
                f"{self.num_held_out}"
            )
        return faults


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Simulated labelers rank sampled responses: one of forty per prompt, each with a taste and noise of their own."""

    responses: str = field(metadata=input_file() | formerly("candidates"))
    """File that `lora-rlhf sample` wrote: rows with prompt and responses."""
    to: str
    """JSONL file of rankings to write."""
    agreement_to: str | None = None
    """Second file to write: rankings of the same responses by several labelers, to measure how far they agree."""
    overlap: int = 100
    """How many prompts go into the agreement file."""
    seed: int = field(default=0, metadata=COMMON)
    """Which labeler gets which prompt, and their noise."""
    shuffle_labels: bool = False
    """Deal the ranks of each ranking out at random: a control, on which a reward model must stay at chance."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [
            *(f"{name} is empty; name a file" for name in ("responses", "to") if not getattr(self, name)),
            *([f"overlap is {self.overlap}, must be at least 1"] if self.overlap < 1 else []),
        ]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How good a response to a prompt of the tiny world is, by the hidden gold score."""

    prompt: str
    """A prompt of the tiny world, for example: Where does the fox live?"""
    response: str
    """Any answer to it."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        if find_request(self.prompt) is not None:
            return []
        return [f"prompt {self.prompt!r} is not one of the tiny world; `lora-rlhf tinyworld make` writes some"]


@cache
def num_prompts(is_held_out: bool) -> int:
    """The number of distinct prompts on that side of the split."""
    return sum(
        len(skill.wordings(key)) * (1 + len(possible_constraints(skill)))
        for skill in SKILLS
        for key in skill.keys
        if Request(skill, key, "").is_held_out == is_held_out
    )
