"""The settings of an evaluation. Free of torch, so that --help answers at once."""

from dataclasses import dataclass, field

from lora_rlhf.configs.catalogue import REWARD, SFT
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.judge import JudgeConfig
from lora_rlhf.configs.marks import input_file


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StageConfig, JudgeConfig):
    """Compare the stages of runs on held-out prompts: one report, with an interval and a paired test on each figure."""

    other_runs: tuple[str, ...] = ()
    """More runs on the same base, whose stages are compared too; the words after the first RUN."""
    prompts: str = field(metadata=input_file())
    """File or hub dataset of held-out prompts."""
    candidate: str | None = None
    """System that may be released, for example policy; none: the run's policy, or its SFT model without one."""
    baseline: str | None = None
    """System that it must beat, for example sft or OTHERRUN:policy; none: the run's SFT model, or else the base."""
    category: str | None = None
    """Column with a prompt's category; none: category or use_case, where the prompts have it."""
    text: str = field(default="auto", metadata=input_file("auto", "none"))
    """File of held-out pretraining text, for the perplexity that alignment may cost; auto: the tiny world's own where
    its prompts are asked; none: none."""
    probes: str = field(default="auto", metadata=input_file("auto", "english", "none"))
    """File of probes for the failure bins; english: the general ones of this package; auto: the tiny world's own where
    its prompts are asked; none: none."""
    choices: str = field(default="auto", metadata=input_file("auto", "none"))
    """File of multiple-choice questions; auto: the tiny world's own where its prompts are asked; none: none."""
    tools: str | None = field(default=None, metadata=input_file())
    """File of conversations with the right tool calls, as SFT learns them; each turn is answered. None: none."""
    grounded: str | None = field(default=None, metadata=input_file())
    """File of prompts that hold the text to answer from, as a column context or in a message; none: none."""
    refusals: str | None = field(default=None, metadata=input_file())
    """JSONL file of prompts with domain, and refuse: true for those that should be declined, else false; none: none."""
    refusal_text: str = "I am sorry, but I cannot help with that."
    """The refusal whose probability orders these prompts, for the curve of over- and under-refusal."""
    lm_eval: tuple[str, ...] = ()
    """Tasks of EleutherAI's harness that every system answers, by name or as .yaml files; needs the extra lm-eval."""
    lm_eval_limit: int | None = None
    """The first so many questions of each such task; none: all."""
    truthfulness: str = "auto"
    """What flags untrue answers: module:function, called with lists of prompts and of responses, or the folder of a
    classifier; auto: the tiny world's exact one where its prompts are asked; none: nothing."""
    toxicity: str = "auto"
    """What flags toxic answers, with the same choices."""
    selection_prompts: str | None = field(default=None, metadata=input_file())
    """Other prompts, on which each system's best temperature is chosen; none: no such comparison."""
    temperatures: tuple[float, ...] = (0.0, 0.3, 0.6, 1.0)
    """Temperatures that the best one is chosen from; 0 is greedy."""
    sft: str | None = None
    """Folder of the SFT stage that the policy was trained from, where it is outside the folder around the run."""
    reward: str | None = None
    """Folder of the reward stage that the policy was trained from, where it is outside the folder around the run."""
    compare: str | None = field(default=None, metadata=input_file())
    """An earlier report.json to set beside this one: which figures moved by more than their intervals."""
    lock: bool = False
    """Write PROMPTS.lock with the hash of the prompts' content; later evaluations refuse these prompts if changed."""
    to: str | None = None
    """Folder for the report; none: the run's."""

    def faults(self) -> list[str]:
        negative_temperatures = [temperature for temperature in self.temperatures if temperature < 0]
        limit = self.lm_eval_limit
        is_same = self.candidate is not None and self.candidate == self.baseline
        return [
            *super().faults(),
            *self.judge_faults(),
            *([f"temperatures below 0: {negative_temperatures}"] if negative_temperatures else []),
            *([f"lm_eval_limit is {limit}, must be at least 1"] if limit is not None and limit < 1 else []),
            *([f"candidate and baseline are both {self.candidate!r}: name two systems"] if is_same else []),
        ]

    @property
    def parents(self) -> dict[str, str | None]:
        """{stage: its folder}, of the stages that the newest one was trained from."""
        return {SFT.name: self.sft, REWARD.name: self.reward}

    @property
    def folder(self) -> str:
        """The folder of the report."""
        return self.to or self.run
