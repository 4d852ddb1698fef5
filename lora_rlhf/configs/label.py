"""What a person can choose when a model ranks or revises responses under written principles."""

from dataclasses import dataclass, field
from typing import Literal

from lora_rlhf.configs.catalogue import SFT, WriterRole
from lora_rlhf.configs.judge import JudgeModelConfig
from lora_rlhf.configs.marks import MOST_USED, SAFE_TO_CHANGE_ON_RESUME, input_file
from lora_rlhf.configs.values import at_least, device_faults, seed_faults


@dataclass(frozen=True, kw_only=True)
class JudgeLabelConfig(JudgeModelConfig):
    """Rankings of sampled responses by a judge under written principles, in the file that people's rankings have."""

    responses: str = field(metadata=input_file())
    """File that `lora-rlhf sample` wrote: rows with prompt and responses."""
    to: str
    """JSONL file of rankings to write; a report stands beside it."""
    judge: Literal["local", "endpoint"]
    """Who ranks: a local chat model, or one behind an OpenAI chat API."""
    principles: str | None = field(default=None, metadata=MOST_USED)
    """Markdown file with the principles to judge by; built-in ones unless given: helpful, truthful, harmless."""
    question: Literal["pairwise", "listwise"] = field(default="pairwise", metadata=MOST_USED)
    """pairwise: each pair of responses, in both orders; listwise: all responses of a prompt in one question."""
    ratings: bool = field(default=False, metadata=MOST_USED)
    """Ask also how good each response is, from 1 to 7."""
    flags: bool = field(default=False, metadata=MOST_USED)
    """Ask also which of the Label tab's flags hold of each response, and of the prompt."""
    against: str | None = field(default=None, metadata=MOST_USED | input_file() | SAFE_TO_CHANGE_ON_RESUME)
    """File of people's rankings of the same responses, to measure how far the judge agrees with them."""
    overwrite: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """Replace a file that is already there."""
    device: str = field(default="auto", metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For local: auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For local: run the code that comes with the judge. Only for authors that you trust."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [
            *(f"{name} is empty; name a file" for name in ("responses", "to") if not getattr(self, name)),
            *device_faults(self),
            *self.model_faults("judge", self.judge),
            *(["judge_instructions are for other commands; give principles"] if self.judge_instructions else []),
        ]


@dataclass(frozen=True, kw_only=True)
class ReviseConfig(JudgeModelConfig):
    """Demonstrations from a model's critiques and revisions of sampled answers by written principles."""

    responses: str = field(metadata=input_file())
    """File that `lora-rlhf sample` wrote; the first response to each prompt is revised."""
    to: str
    """JSONL file of demonstrations to write. Beside NAME.jsonl stand NAME.rankings.jsonl (revision over original),
    NAME.steps.jsonl (each critique and revision, to be read) and NAME.report.json."""
    by: Literal["stage", "local", "endpoint"]
    """Who criticizes and revises: a stage of a run, a local chat model, or one behind an OpenAI chat API."""
    run: str | None = field(default=None, metadata=MOST_USED)
    """For stage: the run folder."""
    role: WriterRole = field(default=SFT.role, metadata=MOST_USED)
    """For stage: which of its models."""
    rounds: int = field(default=4, metadata=MOST_USED)
    """Critiques and revisions of each answer, one after the other (Constitutional AI: 4)."""
    principles: str | None = field(default=None, metadata=MOST_USED)
    """Markdown file of principles, of which each round draws one: its list items and paragraphs that begin in bold, or
    all paragraphs if it has neither. The built-in ones unless given."""
    seed: int = 0
    """Seed of the principles that are drawn."""
    overwrite: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """Replace files that are already there."""
    device: str = field(default="auto", metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For stage and local: auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = field(default=False, metadata=SAFE_TO_CHANGE_ON_RESUME)
    """For stage and local: run the code that comes with the model. Only for authors that you trust."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [
            *(f"{name} is empty; name a file" for name in ("responses", "to") if not getattr(self, name)),
            *at_least(self, 1, "rounds"),
            *device_faults(self),
            *seed_faults(self),
            *self.model_faults("by", self.by),
            *(["by stage needs run"] if self.by == "stage" and not self.run else []),
            *(["judge_instructions are for other commands; give principles"] if self.judge_instructions else []),
        ]
