"""What a person can choose when a recipe is run."""

from dataclasses import dataclass
from typing import Any

from lora_rlhf.configs.values import device_faults, seed_faults


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """All stages of a recipe, one after the other on one base; finished ones are skipped, so this also resumes."""

    config: str
    """Recipe: a YAML file with one section per stage, for example configs/quickstart.yaml."""
    run: str | None = None
    """Run folder, in place of the recipe's."""
    seed: int | None = None
    """Seed, in place of the recipe's."""
    device: str | None = None
    """Device, in place of the recipe's."""
    report_to: tuple[str, ...] | None = None
    """Trackers, in place of the recipe's: tensorboard, wandb, trackio."""
    allow_changes: bool = False
    """Go on with an unfinished stage though the recipe has changed since it began; the changes are recorded."""

    def faults(self) -> list[str]:
        """What is wrong with these by themselves; the recipe is checked as a whole when it is read."""
        return [*device_faults(self), *seed_faults(self)]

    @property
    def overrides(self) -> dict[str, Any]:
        """What was asked for in place of the recipe's own values."""
        return {key: value for key, value in vars(self).items() if key != "config" and value not in (None, False)}
