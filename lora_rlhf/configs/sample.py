"""What a person can choose when responses are sampled: to be ranked, or the best of them as demonstrations."""

from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.catalogue import SFT, WriterRole
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.marks import ENGINE, input_file, subject
from lora_rlhf.configs.scoring import ScoringConfig
from lora_rlhf.configs.values import at_least, positive


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ScoringConfig, StageConfig):
    """K responses per prompt from a stage, ready to be ranked; with best_of, the best ones as demonstrations."""

    prompts: str = field(metadata=input_file())
    """File or hub dataset of prompts."""
    to: str
    """JSONL file to write: one row per prompt, with its distinct responses; with best_of, one row per response kept."""
    deduplicate: Literal["exact", "prefix", "none"] = "exact"
    """Which repeated prompts to leave out; prefix: also those with a long beginning in common (InstructGPT, 3.2)."""
    role: WriterRole = SFT.role
    """Which model writes the responses."""
    min_responses: int = 4
    """Fewest distinct responses; prompts that yield fewer are left out and counted."""
    max_responses: int = 9
    """Most responses; each prompt's K is drawn evenly between the two (InstructGPT: 4 to 9)."""
    temperature: float = 1.0
    """Sampling temperature."""
    engine: Literal["auto", "plain", "static"] = field(default="auto", metadata=ENGINE)
    """How responses are generated: in batches (plain), in slots that are refilled (static), or the faster (auto)."""
    best_of: int | None = field(default=None, metadata=subject("best of n"))
    """Write demonstrations for sft instead: sample so many responses of each prompt, and keep the best one."""
    by: Literal["reward", "function", "judge"] = "reward"
    """What best_of compares: scores of the run's reward model, of reward_functions, or of reward_judge."""
    keep: int = 1
    """With best_of: keep up to so many distinct responses of each prompt, best first (rejection sampling)."""
    min_score: float | None = None
    """With best_of: keep only responses with at least this score, and leave out prompts without one."""
    reward: str | None = None
    """Reward stage folder, for `by reward`; RUN/reward unless given."""
    score_steps_by: Literal["product", "minimum", "last"] = "product"
    """What a process reward (reward --steps) makes of a response's steps: their product, minimum, or the last one."""

    def faults(self) -> list[str]:
        wrong = self.max_responses < self.min_responses
        return [
            *super().faults(),
            *at_least(self, 2, "min_responses"),
            *positive(self, "temperature"),
            *([f"max_responses {self.max_responses} is below min_responses {self.min_responses}"] if wrong else []),
            *self._best_of_faults(),
        ]

    def _best_of_faults(self) -> list[str]:
        faults = [*at_least(self, 1, "best_of", "keep"), *self.scoring_faults()]
        if self.best_of is None:
            chosen = {"keep": self.keep != 1, "min_score": self.min_score is not None, "by": self.by != "reward"}
            chosen |= {"reward_functions": bool(self.reward_functions), "reward_judge": bool(self.reward_judge)}
            chosen |= {"score_steps_by": self.score_steps_by != "product"}
            return faults + [f"{name} is for best_of, which is not given" for name, given in chosen.items() if given]
        if self.keep > self.best_of:
            faults.append(f"keep {self.keep} is above best_of {self.best_of}")
        if (self.by == "function") != bool(self.reward_functions):
            faults.append("by function needs reward_functions, and reward_functions need by function")
        if (self.by == "judge") != bool(self.reward_judge):
            faults.append("by judge needs reward_judge, and reward_judge needs by judge")
        if self.reward_judge_against == "group" and self.best_of < 2:
            faults.append("reward_judge_against group compares responses: best_of must be at least 2")
        return faults
