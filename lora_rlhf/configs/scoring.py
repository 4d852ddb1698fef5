"""How responses are scored beside the reward model: a part of the configuration of every command that scores them."""

from dataclasses import dataclass

from lora_rlhf.configs.reward_functions import FunctionChoice, read_choices
from lora_rlhf.configs.values import positive
from lora_rlhf.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Reward functions, and the limits of their processes."""

    reward_functions: tuple[str, ...] = ()
    """Reward functions with their weights: NAME, NAME=WEIGHT or 'NAME(argument=value)=WEIGHT' each. NAME is
    module:function, one that is built in, or one of trl.rewards (docs/rewards.md)."""
    reward_timeout_s: float = 60.0
    """Seconds that one call of a reward function may take; then its process is ended."""
    reward_memory_gib: float | None = 4.0
    """Memory of a reward function's process, GiB; null: no limit."""

    @property
    def functions(self) -> list[FunctionChoice]:
        """The reward functions. UserError for one of another form."""
        return read_choices(self.reward_functions)

    def scoring_faults(self) -> list[str]:
        """The errors in these values, as texts."""
        faults = positive(self, "reward_timeout_s", "reward_memory_gib")
        try:
            _ = self.functions
        except UserError as error:
            faults.append(str(error))
        return faults
