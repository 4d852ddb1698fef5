"""The stages, in the order in which they run. Code that lists, names or finds stages reads this table.

A new stage takes four files: its page in stages/, its configuration in configs/stages.py, its row here, and its tests.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.stages import DPOConfig, PPOConfig, RewardConfig, SFTConfig

BASE = "base"  # the role without an adapter, as in model/shared.py

RowKind = Literal["demonstrations", "rankings", "steps", "prompts", "texts"]
Use = Literal["learned", "scored", "sampled"]


@dataclass(frozen=True)
class Plot:
    """A curve of a stage's metrics.jsonl. `target`: the setting of the stage that the metric is steered to.

    is_histogram: each value is a histogram, of which the newest is drawn.
    """

    metric: str
    title: str
    meaning: str
    target: str | None = None
    is_histogram: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run.

    name: of its command, its section in a recipe and its folder in a run. role: of the adapter that it trains.
    config: its settings. page: the module whose `train(config, model=None)` runs it; imported when it runs, so that
    this table stays free of torch.

    use: what it does with responses. "learned": they are in the loss. "scored": the role reads a score at their last
    token, and writes nothing. "sampled": the role writes them in training.
    reads: {setting that names a data file: kind of its rows}; the first one is what the stage trains on.
    parents: the stages that it starts from.

    title: of the work. model_title: of the trained model, as a heading. model_name: of the same, in a sentence.
    summary: for the command line. next_command: what usually follows; {run} is the run's folder.
    hub_tag: for a model card's metadata. settings: those that a card shows.
    counts: {result: words}, the counts of data that a card shows. limits: a sentence on the model's use, for its card.
    plots: what can be watched. other_adapters: folders of adapters beside `adapter`.
    """

    name: str
    role: str
    config: type[TrainingConfig]
    page: str
    use: Use
    reads: Mapping[str, RowKind]
    parents: tuple[str, ...] = ()
    title: str
    model_title: str
    model_name: str
    summary: str
    next_command: str
    hub_tag: str
    settings: tuple[str, ...]
    counts: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    plots: tuple[Plot, ...] = ()
    other_adapters: tuple[str, ...] = ()

    @property
    def trains_on(self) -> str:
        """The setting that names its training data; also the name of these data in its manifest."""
        return next(iter(self.reads))

    @property
    def may_train_on(self) -> tuple[str, ...]:
        """The settings that may name its training data: `trains_on`, or labels of steps in their place."""
        return tuple(name for name, kind in self.reads.items() if name == self.trains_on or kind == "steps")

    @property
    def scores(self) -> bool:
        """Whether its role scores responses, instead of writing them."""
        return self.use == "scored"

    def has_setting(self, name: str) -> bool:
        """Whether its configuration has a field of that name."""
        return name in self.config.__dataclass_fields__

    def train(self, config: Any, model: Any = None) -> Any:
        """Runs the stage, on the base in memory where `model` is given; returns that shared model."""
        return importlib.import_module(self.page).train(config, model)


SFT = Stage(
    name="sft",
    role="sft",
    config=SFTConfig,
    page="lora_rlhf.stages.sft",
    use="learned",
    reads={"demonstrations": "demonstrations"},
    title="supervised fine-tuning",
    model_title="SFT model",
    model_name="the SFT model",
    summary="stage 1: supervised fine-tuning on demonstrations",
    next_command="sample --run {run} --prompts PROMPTS.jsonl --to {run}/candidates.jsonl",
    hub_tag="sft",
    settings=(
        "lora_rank",
        "lora_alpha",
        "use_rslora",
        "lora_targets",
        "epochs",
        "batch_size",
        "learning_rate",
        "packing",
    ),
    counts={"demonstrations": "demonstrations", "validation": "more held out to choose an epoch"},
    plots=(
        Plot("sft/loss", "SFT loss", "nats a token of the response, in training"),
        Plot("sft/validation_loss", "SFT validation loss", "nats a token, on held-out prompts"),
    ),
)
REWARD = Stage(
    name="reward",
    role="reward",
    config=RewardConfig,
    page="lora_rlhf.stages.reward",
    use="scored",
    reads={"rankings": "rankings", "steps": "steps", "demonstrations": "demonstrations", "agreement": "rankings"},
    parents=("sft",),
    title="reward model",
    model_title="reward model",
    model_name="the reward model",
    summary="stage 2: reward model on rankings or pairs, or on labels of steps",
    next_command="ppo --run {run} --prompts PROMPTS.jsonl --kl_target 6",
    hub_tag="reward-model",
    settings=("epochs", "batch_size", "learning_rate", "loss"),
    counts={
        **{"prompts": "ranked prompts", "pairs": "pairs", "held_out_pairs": "pairs held out"},
        **{"answers": "answers", "labelled_steps": "labelled steps", "held_out_steps": "labelled steps held out"},
    },
    limits="Its scores compare answers to one prompt; between prompts they mean little.",
    plots=(
        Plot("reward/loss", "Reward loss", "-log sigmoid of the better response's lead"),
        Plot("reward/accuracy", "Reward accuracy", "share of pairs ordered as the labelers did, in training"),
    ),
)
DPO = Stage(
    name="dpo",
    role="dpo",
    config=DPOConfig,
    page="lora_rlhf.stages.dpo",
    use="learned",
    reads={"rankings": "rankings"},
    parents=("sft",),
    title="DPO",
    model_title="DPO policy",
    model_name="the DPO policy",
    summary="a policy from the rankings alone (DPO, IPO, KTO, ...), without a reward model",
    next_command="evaluate {run} --prompts HELD_OUT.jsonl",
    hub_tag="dpo",
    settings=(
        *("method", "loss_type", "beta", "pairs", "label_smoothing", "reference"),
        *("epochs", "batch_size", "learning_rate"),
    ),
    counts={"prompts": "ranked prompts", "pairs": "pairs", "votes": "votes", "held_out_pairs": "pairs held out"},
    limits="It was trained on labelers' choices between other models' answers, and nothing checked its own.",
    plots=(
        Plot("dpo/loss", "DPO loss", "of the pairs or votes, in training"),
        Plot("dpo/margin", "DPO margin", "beta times how much more the chosen answer gained than the rejected one"),
        Plot("samples/accuracy", "DPO accuracy", "share of held-out pairs in which the chosen answer gained more"),
    ),
)
PPO = Stage(
    name="ppo",
    role="policy",
    config=PPOConfig,
    page="lora_rlhf.stages.ppo",
    use="sampled",
    reads={"prompts": "prompts", "pretraining_text": "texts"},
    parents=("sft", "reward"),
    title="PPO",
    model_title="PPO policy",
    model_name="the policy",
    summary="stage 3: PPO against the reward model",
    next_command="evaluate {run} --prompts HELD_OUT.jsonl",
    hub_tag="ppo",
    settings=(
        *("iterations", "batch_size", "minibatch_size", "num_epochs", "samples_per_prompt", "temperature", "advantage"),
        *("gamma", "lam", "clip_range", "policy_learning_rate", "value_learning_rate", "missing_eos_score"),
        *("kl_in", "loss_level", "clip_range_high", "skip_equal_groups", "mask_overlong"),
        *("whiten_rewards", "score_clip", "reward_function", "reward_functions", "pretraining_text"),
    ),
    counts={"prompts": "prompts"},
    limits="It was trained to please a reward model, which errs as shown above, and may exploit its errors.",
    plots=(
        Plot("rollout/score", "Score", "the reward model's mean score of the responses; the demonstrations' is 0"),
        Plot("rollout/kl", "KL to the reference", "nats a response; dashed: the target", "kl_target"),
        Plot(
            "rollout/score_histogram",
            "Scores, newest iteration",
            "responses by their score; a hill at one end, or two hills, are worth a look at the answers",
            is_histogram=True,
        ),
        Plot("rollout/length", "Length", "mean tokens of a response"),
        Plot("ppo/entropy", "Entropy", "nats a token; near 0 the policy always says the same"),
        Plot("ppo/clip_fraction", "Clip fraction", "share of tokens whose probability ratio was clipped"),
        Plot("ppo/value_loss", "Value loss", "how far the values are from the returns"),
        Plot("ppo/kl_coef", "KL coefficient", "the price of a nat of KL, steered towards the target"),
        Plot("time/tokens_per_s", "Tokens per second", "of the rollout"),
        Plot("memory/peak_gib", "Memory", "peak, GiB"),
    ),
    other_adapters=("value_adapter",),
)
STAGES = (SFT, REWARD, DPO, PPO)
WRITERS = tuple(stage for stage in STAGES if not stage.scores)  # whose roles answer prompts
BY_NAME = {stage.name: stage for stage in STAGES}
BY_ROLE = {stage.role: stage for stage in STAGES}

# {setting that names a data file: kind of its rows}, of all stages
ROW_KINDS: Mapping[str, RowKind] = {name: kind for stage in STAGES for name, kind in stage.reads.items()}

# What a flag takes. A type checker reads no tuple here; at run time --help and the checks of values see the choices.
if TYPE_CHECKING:
    StageName = str
    WriterRole = str
    ChatRole = str
    ExportRole = str
else:
    StageName = Literal[*(stage.name for stage in STAGES)]
    WriterRole = Literal[BASE, *(stage.role for stage in WRITERS)]
    ChatRole = Literal["auto", *(stage.role for stage in reversed(WRITERS)), BASE]
    ExportRole = Literal[*(stage.role for stage in reversed(STAGES))]


def ancestors(stage: Stage) -> tuple[Stage, ...]:
    """The stages that it descends from and itself, in the order in which they run."""
    names = {stage.name}
    for older in reversed(STAGES):
        if older.name in names:
            names |= set(older.parents)
    return tuple(older for older in STAGES if older.name in names)


def readers(kind: RowKind) -> tuple[Stage, ...]:
    """The stages that train on rows of a kind; where none does, those that read them beside their training data."""
    trained = tuple(stage for stage in STAGES if stage.reads[stage.trains_on] == kind)
    return trained or tuple(stage for stage in STAGES if kind in stage.reads.values())
