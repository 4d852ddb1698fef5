"""How responses are scored beside the reward model: a part of the configuration of every command that scores them."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.judge import JudgeModelConfig
from lora_rlhf.configs.marks import MOST_USED, NEEDS_TRUST, subject
from lora_rlhf.configs.reward_functions import FunctionChoice, read_choices
from lora_rlhf.configs.values import positive
from lora_rlhf.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(JudgeModelConfig):
    """Reward functions with the limits of their processes, and a judge."""

    reward_functions: tuple[str, ...] = field(
        default=(), metadata=MOST_USED | NEEDS_TRUST | subject("reward functions and judge")
    )
    """Reward functions with their weights: NAME, NAME=WEIGHT or 'NAME(argument=value)=WEIGHT' each. NAME is
    module:function, one that is built in, or one of trl.rewards (docs/rewards.md)."""
    reward_timeout_s: float = 60.0
    """Seconds that one call of a reward function may take; then its process is ended."""
    reward_memory_gib: float | None = 4.0
    """Memory of a reward function's process, GiB; null: no limit."""

    reward_judge: Literal["local", "endpoint"] | None = None
    """A model that judges each response, with the settings judge_*: a chat model on this machine, or one behind an
    OpenAI chat API (docs/judges.md)."""
    reward_judge_weight: float = 1.0
    """Weight of the judge's score, which is between 0 and 1."""
    reward_judge_against: str | None = None
    """What the judge compares a response with: group (the prompt's other responses), or @COLUMN (a reference answer in
    that column); none: nothing, it gives 1 to 7."""

    @property
    def functions(self) -> list[FunctionChoice]:
        """The reward functions. UserError for one of another form."""
        return read_choices(self.reward_functions)

    def scoring_faults(self) -> list[str]:
        """The errors in these values, as texts."""
        faults = positive(self, "reward_timeout_s", "reward_memory_gib")
        faults += self.model_faults("reward_judge", self.reward_judge)
        against = self.reward_judge_against
        if against is not None and against != "group" and (against[:1] != "@" or not against[1:]):
            faults.append(f"reward_judge_against is {against!r}, expected group or @COLUMN")
        if self.reward_judge is None and (against is not None or self.judge_model or self.judge_url):
            faults.append("reward_judge_against, judge_model and judge_url are for reward_judge, which is not given")
        if not math.isfinite(self.reward_judge_weight) or (self.reward_judge and not self.reward_judge_weight):
            faults.append(f"reward_judge_weight is {self.reward_judge_weight}, expected a number that is not 0")
        try:
            _ = self.functions
        except UserError as error:
            faults.append(str(error))
        return faults
