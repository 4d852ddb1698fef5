"""Who answers, what they answered and how it was judged: everything that the sections of a report are computed from."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.frozen import Frozen
from lora_rlhf.evaluation.generation import respond
from lora_rlhf.evaluation.scorers import HarmScorer
from lora_rlhf.evaluation.systems import Compared
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.scores import ScoreJudge
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.sets import World
from lora_rlhf.stats.win_rates import Outcomes

SAMPLED = 1.0  # the temperature that training is about

Answers = Mapping[str, list[Response]]  # {system: one a prompt}


class LeftOut(Exception):
    """Why a section of the report could not be computed."""


@dataclass
class Evaluation:
    """The systems, what they are asked and who judges. Answers and outcomes are filled in by `run`."""

    config: EvaluateConfig
    model: SharedModel
    compared: Compared
    judge: Judge
    reward: ScoreJudge | None
    world: World | None
    prompts: list[EncodedPrompt]
    selection: list[EncodedPrompt]
    frozen: Frozen
    scorers: Mapping[str, HarmScorer]
    tasks: Mapping[str, Any]
    probe_prompts: list[EncodedPrompt]
    categories: list[str] | None
    languages: list[str]
    progress: tqdm
    answers: Answers = field(default_factory=dict)
    probe_answers: Answers = field(default_factory=dict)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    sweep: dict[str, dict[float, float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_answers: Answers = field(default_factory=dict)
    best_outcomes: dict[str, Outcomes] = field(default_factory=dict)
    inconsistent: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self) -> None:
        """Generates and judges all that the report is about; at other temperatures too where prompts are for that."""
        names = self.compared.names
        everything = self.ask([*self.prompts, *self.probe_prompts], dict.fromkeys(names, SAMPLED))
        self.answers = {name: answers[: len(self.prompts)] for name, answers in everything.items()}
        self.probe_answers = {name: answers[len(self.prompts) :] for name, answers in everything.items()}
        self.outcomes = self.compare(self.answers)
        if self.selection and isinstance(self.judge, ScoreJudge):
            self._choose_temperatures(self.judge)

    def ask(self, prompts: Sequence[EncodedPrompt], temperatures: Mapping[str, float]) -> Answers:
        """One response of each system to each prompt, at the temperature given for it."""
        with self.timed("generation", f"{len(prompts)} prompts"):
            systems = [system for system in self.compared.systems if system.name in temperatures]
            chosen = [temperatures[system.name] for system in systems]
            answers = respond(self.config, self.model, [system.role for system in systems], prompts, chosen)
        return dict(zip([system.name for system in systems], answers, strict=True))

    def compare(self, answers: Answers) -> dict[str, Outcomes]:
        """{A_vs_B: the judge's outcome of each prompt}: 1 A won, 0.5 tie, 0 B won, None the judge failed.

        Where several people voted, the majority decides.
        """
        outcomes: dict[str, Outcomes] = {}
        for pair, (first, second) in self.compared.pairs.items():
            with self.timed("judging", pair):
                verdicts = self.judge.compare(self.prompts, answers[first], answers[second])
            self.inconsistent += verdicts.inconsistent
            outcomes[pair] = [
                None if won is None else 0.5 + 0.5 * ((won > 0.5) - (won < 0.5)) for won in verdicts.outcomes
            ]
        return outcomes

    def outcomes_against_baseline(self) -> dict[str, list[float | None]]:
        """{system: its outcomes against the baseline}, for all but the baseline."""
        outcomes: dict[str, list[float | None]] = {}
        for pair, (first, second) in self.compared.pairs.items():
            if second == self.compared.baseline:
                outcomes[first] = list(self.outcomes[pair])
            elif first == self.compared.baseline:
                outcomes[second] = [None if won is None else 1.0 - won for won in self.outcomes[pair]]
        return {name: outcomes[name] for name in self.compared.names if name in outcomes}

    @contextmanager
    def timed(self, part: str, detail: str = "") -> Iterator[None]:
        """Counts what the block takes as a part of the evaluation, and shows it on the bar."""
        self.progress.set_postfix_str(f"{part} {detail}".strip())
        started = time.monotonic()
        yield
        self.seconds[f"evaluate_{part}"] += time.monotonic() - started
        self.progress.update()

    def _choose_temperatures(self, judge: ScoreJudge) -> None:
        """Each system's best temperature by its mean score on the selection prompts, and its answers at that one."""
        self.sweep = {name: {} for name in self.compared.names}
        for temperature in self.config.temperatures:
            answers_of = self.ask(self.selection, dict.fromkeys(self.compared.names, temperature))
            with self.timed("judging", f"at temperature {temperature:g}"):
                for name, answers in answers_of.items():
                    scores = judge.scores(self.selection, answers)
                    self.sweep[name][temperature] = sum(scores) / len(scores)
        self.best = {name: max(means, key=lambda t: means[t]) for name, means in self.sweep.items()}
        # The same seed at temperature 1 would give the same responses again.
        others = {name: temperature for name, temperature in self.best.items() if temperature != SAMPLED}
        best_answers = self.ask(self.prompts, others) if others else {}
        self.best_answers = {name: best_answers.get(name, self.answers[name]) for name in self.compared.names}
        self.best_outcomes = self.compare(self.best_answers)
