"""What a person can choose for a round: which prompts are labelled by whom, and how the policy goes on."""

from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.judge import JudgeModelConfig
from lora_rlhf.configs.marks import MOST_USED, SAFE_TO_CHANGE_ON_RESUME, input_file
from lora_rlhf.configs.values import at_least, device_faults, seed_faults, share


@dataclass(frozen=True, kw_only=True)
class RoundConfig(JudgeModelConfig):
    """One more round from a run's policy: sample, choose, label, train the reward model again, go on, evaluate, gate.

    The round is a run folder of its own beside the first one: RUN-round-2, RUN-round-3, ... The same command goes on
    with a round that is not finished, and else begins the next one.
    """

    folder: str
    """Run folder of the first round, with its SFT stage and a policy."""
    prompts: str = field(metadata=MOST_USED | input_file())
    """File of prompts, of which some are labelled; those ranked in earlier rounds are left out."""
    held_out: str = field(metadata=MOST_USED | input_file())
    """File of frozen prompts, on which each round is compared with the one before."""
    number: int | None = field(default=None, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """The round to make, from 2 on; a finished one is left as it is. The next one unless given."""
    labels: int = field(default=200, metadata=MOST_USED)
    """Prompts whose responses are ranked."""
    random_share: float = 0.2
    """Share of these that is drawn at random, never trained on, and measures the reward models of all rounds."""
    min_responses: int = 2
    """Fewest distinct responses to a prompt."""
    max_responses: int = 4
    """Most responses to a prompt."""
    judge: Literal["people", "local", "endpoint"] = field(default="people", metadata=MOST_USED)
    """Who ranks: people, in the app or in any other way; a local chat model; or one behind an OpenAI chat API."""
    accept_fewer: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For people: go on with the rankings that there are, although some prompts have none."""
    principles: str | None = None
    """For local and endpoint: Markdown file with the principles to judge by; built-in ones unless given."""
    question: Literal["pairwise", "listwise"] = "pairwise"
    """For local and endpoint: as of `lora-rlhf label`."""
    reference: Literal["sft", "base", "init"] = field(default="sft", metadata=MOST_USED)
    """What the policy is held to: the SFT model, the bare base, or the policy of the round before (init)."""
    settings: str | None = field(default=None, metadata=MOST_USED)
    """YAML file with sections sample, reward, ppo, dpo and evaluate, for settings other than the stages had before."""
    policy: str | None = field(default=None, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """YAML file with the gate's rules; the packaged one unless given."""
    seed: int = 0
    """Seed of the choice; with the round's number it is that of the stages."""
    device: str = field(default="auto", metadata=SAFE_TO_CHANGE_ON_RESUME)
    """auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """Run the code that comes with base and judge. Only for authors that you trust."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        judge = None if self.judge == "people" else self.judge
        return [
            *(f"{name} is empty; name one" for name in ("folder", "prompts", "held_out") if not getattr(self, name)),
            *at_least(self, 2, "min_responses", "number"),
            *at_least(self, self.min_responses, "max_responses"),
            *at_least(self, 1, "labels"),
            *share(self, "random_share"),
            *device_faults(self),
            *seed_faults(self),
            *self.model_faults("judge", judge),
            *(["judge_instructions are for other commands; give principles"] if self.judge_instructions else []),
        ]


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """The rounds of a run as a table: labels, the reward models on each policy's own answers, win rates, gates."""

    folder: str
    """Run folder of the first round."""
    json: bool = False
    """Print all figures as JSON."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [] if self.folder else ["folder is empty; name a run"]
