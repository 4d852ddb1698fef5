"""The fastest flags that fit a card, stage by stage; and what is said where none do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lora_rlhf.plan import roofline
from lora_rlhf.plan.cards import CARDS, LARGEST, Card
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.memory import GIB, Height, Setting, peak, stage_heights
from lora_rlhf.plan.subject import Subject
from lora_rlhf.system.errors import UserError

STAGES = ("sft", "reward", "ppo")
SIZES = tuple(2**power for power in range(8))
MARGIN = 0.05  # of a card is left free: the plan may be that much under the truth
SIBLINGS = 4  # responses of one prompt, where they are compared instead of valued


@dataclass(frozen=True)
class StagePlan:
    """A stage's setting, its heights and the highest of them, and its seconds (PPO's: per iteration)."""

    setting: Setting
    heights: list[Height]
    top: Height
    seconds: float
    iteration: roofline.Iteration | None


@dataclass(frozen=True)
class Plan:
    """All stages on one card."""

    subject: Subject
    card: Card
    advantage: str
    stages: dict[str, StagePlan]


def choose(subject: Subject, config: PlanConfig, card: Card) -> Plan:
    """What is given stays; the rest is found. UserError where nothing fits, with what it would need."""
    stages: dict[str, StagePlan] = {}
    for stage in STAGES:
        found = [_fastest(subject, config, card, stage, value_role) for value_role in _value_roles(config, stage)]
        fitting = next((plan for plan in found if plan is not None), None)
        if fitting is None:
            raise UserError(_refusal(subject, config, card, stage))
        stages[stage] = fitting
    value_role = stages["ppo"].setting.value_role
    advantage = config.advantage or ("gae" if value_role else "rloo")
    return Plan(subject, card, advantage, stages)


def fits(height: Height, card: Card) -> bool:
    """With a margin for what the plan does not see."""
    return height.total <= card.gib * GIB * (1 - MARGIN)


def _value_roles(config: PlanConfig, stage: str) -> tuple[bool, ...]:
    if stage != "ppo":
        return (True,)
    return (True, False) if config.advantage is None else (config.advantage == "gae",)


def _fastest(subject: Subject, config: PlanConfig, card: Card, stage: str, value_role: bool) -> StagePlan | None:
    """The fewest seconds; of equals, the least memory."""
    plans = [_plan(subject, config, card, stage, setting) for setting in _settings(config, stage, value_role)]
    return min(
        (plan for plan in plans if fits(plan.top, card)),
        key=lambda plan: (round(plan.seconds, 2), plan.top.total),
        default=None,
    )


def _settings(config: PlanConfig, stage: str, value_role: bool) -> Iterator[Setting]:
    """Everything that may be asked for and is left open."""
    checkpointing = (False, True) if config.gradient_checkpointing is None else (config.gradient_checkpointing,)
    micro = [size for size in SIZES if size <= config.minibatch_size]
    generation = [size for size in SIZES if size <= config.batch_size] if stage == "ppo" else [1]
    for rows in micro if config.micro_batch_size is None else [config.micro_batch_size]:
        for sampled in generation if config.generation_batch_size is None else [config.generation_batch_size]:
            for kind in checkpointing:
                yield Setting(
                    rows,
                    sampled,
                    kind,
                    config.lora_rank,
                    value_role,
                    config.minibatch_size,
                    config.batch_size,
                    1 if value_role else SIBLINGS,
                )


def _plan(subject: Subject, config: PlanConfig, card: Card, stage: str, setting: Setting) -> StagePlan:
    heights = stage_heights(stage, subject.counts, subject.passes, setting, subject.device)
    if stage == "ppo":
        timed = roofline.iteration(subject.counts, subject.passes, card, setting, config.num_epochs)
        return StagePlan(setting, heights, peak(heights), timed.total, timed)
    return StagePlan(
        setting, heights, peak(heights), roofline.step(subject.counts, subject.passes, card, setting), None
    )


def _refusal(subject: Subject, config: PlanConfig, card: Card, stage: str) -> str:
    """What it would need at the least, as asked; the largest batch that fits where that is the fault."""
    least = _least(subject, config, card, stage)
    need = least.top.total / GIB / (1 - MARGIN)
    lengths = f"{config.max_prompt_tokens} + {config.max_response_tokens} tokens"
    given = {
        name: value
        for name in ("micro_batch_size", "generation_batch_size", "gradient_checkpointing", "advantage")
        if (value := getattr(config, name)) is not None
    }
    if given:
        said = ", ".join(f"{name} {value}" for name, value in given.items())
        open_config = replace(config, **dict.fromkeys(given))  # type: ignore[arg-type]
        free = [_fastest(subject, open_config, card, stage, role) for role in _value_roles(open_config, stage)]
        best = next((plan for plan in free if plan is not None), None)
        if best is not None:
            way = "; ".join(_flags_in_words(best.setting, stage))
            return (
                f"{stage} of {subject.name} with {said} needs {need:.1f} GiB ({lengths}), a card of {card.gib:g} GiB "
                f"has less{_beyond(need)}. What fits: {way}"
            )
    return (
        f"{stage} of {subject.name} does not fit a card of {card.gib:g} GiB: with the least that can be asked for it "
        f"needs {need:.1f} GiB ({lengths}){_beyond(need)}. The largest part is {_largest(least.top)}. Take a smaller "
        "model, a larger card, or lower --max_prompt_tokens and --max_response_tokens"
    )


def _least(subject: Subject, config: PlanConfig, card: Card, stage: str) -> StagePlan:
    plans = [
        _plan(subject, config, card, stage, setting)
        for value_role in _value_roles(config, stage)
        for setting in _settings(config, stage, value_role)
    ]
    return min(plans, key=lambda plan: plan.top.total)


def _beyond(need: float) -> str:
    if need > LARGEST.gib:
        return f", more than any card listed here ({LARGEST.gib} GiB)"
    return f"; a card of {next(card.gib for card in CARDS if card.gib >= need)} GiB would do"


def _largest(height: Height) -> str:
    part = max(height.parts, key=lambda name: height.parts[name])
    return f"{part}, {height.parts[part] / GIB:.1f} GiB"


def _flags_in_words(setting: Setting, stage: str) -> list[str]:
    said = [f"--micro_batch_size {setting.micro_batch}"]
    if stage == "ppo":
        said.append(f"--generation_batch_size {setting.generation_batch}")
    if setting.checkpointing:
        said.append("--gradient_checkpointing true")
    if not setting.value_role:
        said.append(f"--advantage rloo --samples_per_prompt {SIBLINGS}")
    return said
