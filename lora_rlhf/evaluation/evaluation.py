"""The systems' answers and the judge's outcomes, from which the sections of a report are computed."""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.frozen import FrozenSets
from lora_rlhf.evaluation.generation import generate_responses
from lora_rlhf.evaluation.scorers import HarmScorer
from lora_rlhf.evaluation.systems import SystemSet
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.scores import ScoreJudge
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import World
from lora_rlhf.stats.win_rates import Outcomes

TRAINING_TEMPERATURE = 1.0  # the temperature of training

Answers = Mapping[str, list[Response]]  # {system: one response to each prompt}


class LeftOut(Exception):
    """A section of the report cannot be computed; the message says why."""


@dataclass
class Evaluation:
    """The systems, their prompts and the judge. `run` fills in answers and outcomes.

    asked, asked_answers: the prompts and answers of the frozen sets that are asked beside the prompts, by their names.
    """

    config: EvaluateConfig
    model: SharedModel
    system_set: SystemSet
    judge: Judge
    reward: ScoreJudge | None
    world: World | None
    prompts: list[EncodedPrompt]
    selection: list[EncodedPrompt]
    frozen: FrozenSets
    scorers: Mapping[str, HarmScorer]
    tasks: Mapping[str, Any]
    asked: Mapping[str, list[EncodedPrompt]]
    categories: list[str] | None
    languages: list[str]
    progress: tqdm
    answers: Answers = field(default_factory=dict)
    asked_answers: dict[str, Answers] = field(default_factory=dict)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    mean_scores: dict[str, dict[float, float]] = field(default_factory=dict)
    best_temperatures: dict[str, float] = field(default_factory=dict)
    best_answers: Answers = field(default_factory=dict)
    best_outcomes: dict[str, Outcomes] = field(default_factory=dict)
    num_inconsistent: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self) -> None:
        """Generates and judges all answers; also at other temperatures, if there are prompts to choose one on."""
        names = self.system_set.names
        all_prompts = [*self.prompts, *itertools.chain(*self.asked.values())]
        all_answers = self.generate_answers(all_prompts, dict.fromkeys(names, TRAINING_TEMPERATURE))
        end = 0
        for set_name, prompts in {"": self.prompts, **self.asked}.items():
            start, end = end, end + len(prompts)
            self.asked_answers[set_name] = {name: answers[start:end] for name, answers in all_answers.items()}
        self.answers = self.asked_answers.pop("")
        self.outcomes = self.judge_pairs(self.answers)
        if self.selection and isinstance(self.judge, ScoreJudge):
            self._choose_temperatures(self.judge)

    def generate_answers(self, prompts: Sequence[EncodedPrompt], temperatures: Mapping[str, float]) -> Answers:
        """One response of each system to each prompt, at the system's temperature."""
        with self.measure_time("generation", f"{len(prompts)} prompts"):
            systems = [system for system in self.system_set.systems if system.name in temperatures]
            system_temperatures = [temperatures[system.name] for system in systems]
            answers = generate_responses(
                self.config, self.model, [system.role for system in systems], prompts, system_temperatures
            )
        return dict(zip([system.name for system in systems], answers, strict=True))

    def judge_pairs(self, answers: Answers) -> dict[str, Outcomes]:
        """{A_vs_B: the judge's outcome of each prompt}: 1 A won, 0.5 tie, 0 B won, None the judge failed.

        If several people voted, the majority decides.
        """
        outcomes: dict[str, Outcomes] = {}
        for pair, (first, second) in self.system_set.pairs.items():
            with self.measure_time("judging", pair):
                verdicts = self.judge.compare(self.prompts, answers[first], answers[second])
            self.num_inconsistent += verdicts.inconsistent
            outcomes[pair] = [
                None if outcome is None else 0.5 + 0.5 * ((outcome > 0.5) - (outcome < 0.5))
                for outcome in verdicts.outcomes
            ]
        return outcomes

    def outcomes_against_baseline(self) -> dict[str, list[float | None]]:
        """{system: its outcomes against the baseline}, for all but the baseline."""
        outcomes: dict[str, list[float | None]] = {}
        for pair, (first, second) in self.system_set.pairs.items():
            if second == self.system_set.baseline:
                outcomes[first] = list(self.outcomes[pair])
            elif first == self.system_set.baseline:
                outcomes[second] = [None if outcome is None else 1.0 - outcome for outcome in self.outcomes[pair]]
        return {name: outcomes[name] for name in self.system_set.names if name in outcomes}

    @contextmanager
    def measure_time(self, part: str, detail: str = "") -> Iterator[None]:
        """Adds the time of the block to a part of the evaluation, and shows the part on the progress bar."""
        self.progress.set_postfix_str(f"{part} {detail}".strip())
        started = time.monotonic()
        yield
        self.seconds[f"evaluate_{part}"] += time.monotonic() - started
        self.progress.update()

    def _choose_temperatures(self, judge: ScoreJudge) -> None:
        """Finds each system's best temperature by its mean score on the selection prompts, and its answers there."""
        self.mean_scores = {name: {} for name in self.system_set.names}
        for temperature in self.config.temperatures:
            answers_by_system = self.generate_answers(self.selection, dict.fromkeys(self.system_set.names, temperature))
            with self.measure_time("judging", f"at temperature {temperature:g}"):
                for name, answers in answers_by_system.items():
                    scores = judge.scores(self.selection, answers)
                    self.mean_scores[name][temperature] = sum(scores) / len(scores)
        self.best_temperatures = {
            name: max(scores_by_temperature, key=lambda temperature: scores_by_temperature[temperature])
            for name, scores_by_temperature in self.mean_scores.items()
        }
        # At temperature 1 the same seed would give the same responses again.
        other_temperatures = {
            name: temperature
            for name, temperature in self.best_temperatures.items()
            if temperature != TRAINING_TEMPERATURE
        }
        best_answers = self.generate_answers(self.prompts, other_temperatures) if other_temperatures else {}
        self.best_answers = {name: best_answers.get(name, self.answers[name]) for name in self.system_set.names}
        self.best_outcomes = self.judge_pairs(self.best_answers)
