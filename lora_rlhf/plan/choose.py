"""The fastest flags that fit a card, for each stage; and the message where none fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lora_rlhf.configs.catalogue import STAGES, Stage
from lora_rlhf.plan import roofline
from lora_rlhf.plan.cards import CARDS, LARGEST, Card
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.memory import GIB, MemoryPoint, Setting, highest, memory_points
from lora_rlhf.plan.subject import Subject
from lora_rlhf.system.errors import UserError

SIZES = tuple(2**power for power in range(8))
MARGIN = 0.05  # of a card is left free: the prediction may be that much too low
SIBLINGS = 4  # responses to one prompt, where they are compared instead of valued


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. `peak` is the highest of `points`.

    seconds: of an optimizer step; of an iteration, whose parts `iteration` has, where the stage samples responses.
    """

    stage: Stage
    setting: Setting
    points: list[MemoryPoint]
    peak: MemoryPoint
    seconds: float
    iteration: roofline.IterationSeconds | None


@dataclass(frozen=True)
class RunPlan:
    """The plans of all stages on one card, by the stage's name. `advantage`: for the stages that sample responses."""

    subject: Subject
    card: Card
    advantage: str
    stages: dict[str, StagePlan]


def choose(subject: Subject, config: PlanConfig, card: Card) -> RunPlan:
    """The fastest plan that fits, with the flags that are given. UserError where none fits, with what it would need."""
    stages: dict[str, StagePlan] = {}
    for stage in STAGES:
        plan = _fastest_of_any_role(subject, config, card, stage)
        if plan is None:
            raise UserError(_refusal(subject, config, card, stage))
        stages[stage.name] = plan
    has_value_role = all(plan.setting.value_role for plan in stages.values())
    return RunPlan(subject, card, config.advantage or ("gae" if has_value_role else "rloo"), stages)


def fits(point: MemoryPoint, card: Card) -> bool:
    """Whether the card has that much memory, with a margin for what the plan does not know."""
    return point.total <= card.gib * GIB * (1 - MARGIN)


def _value_roles(config: PlanConfig, stage: Stage) -> tuple[bool, ...]:
    """Whether to plan with a value role, in order of preference; without meaning for stages that do not sample."""
    if stage.use != "sampled":
        return (True,)
    return (True, False) if config.advantage is None else (config.advantage == "gae",)


def _fastest_of_any_role(subject: Subject, config: PlanConfig, card: Card, stage: Stage) -> StagePlan | None:
    """The fastest plan with a value role; if none fits, the fastest without one; None if none fits either."""
    plans = (_fastest(subject, config, card, stage, value_role) for value_role in _value_roles(config, stage))
    return next((plan for plan in plans if plan is not None), None)


def _fastest(subject: Subject, config: PlanConfig, card: Card, stage: Stage, value_role: bool) -> StagePlan | None:
    """The plan that fits with the fewest seconds; of equals, the one with the least memory."""
    plans = [_plan(subject, config, card, stage, setting) for setting in _settings(config, stage, value_role)]
    return min(
        (plan for plan in plans if fits(plan.peak, card)),
        key=lambda plan: (round(plan.seconds, 2), plan.peak.total),
        default=None,
    )


def _settings(config: PlanConfig, stage: Stage, value_role: bool) -> Iterator[Setting]:
    """All settings to choose from: the flags that are given are fixed."""
    checkpointings = (False, True) if config.gradient_checkpointing is None else (config.gradient_checkpointing,)
    micro_batches = [size for size in SIZES if size <= config.minibatch_size]
    generation_batches = [size for size in SIZES if size <= config.batch_size] if stage.use == "sampled" else [1]
    for micro_batch in micro_batches if config.micro_batch_size is None else [config.micro_batch_size]:
        given = config.generation_batch_size
        for generation_batch in generation_batches if given is None else [given]:
            for checkpointing in checkpointings:
                yield Setting(
                    micro_batch,
                    generation_batch,
                    checkpointing,
                    config.lora_rank,
                    value_role,
                    config.minibatch_size,
                    config.batch_size,
                    1 if value_role else SIBLINGS,
                )


def _plan(subject: Subject, config: PlanConfig, card: Card, stage: Stage, setting: Setting) -> StagePlan:
    counts, passes = subject.counts, subject.passes
    points = memory_points(stage, counts, passes, setting, subject.device)
    if stage.use == "sampled":
        iteration = roofline.iteration(counts, passes, card, setting, config.num_epochs)
        return StagePlan(stage, setting, points, highest(points), iteration.total, iteration)
    return StagePlan(stage, setting, points, highest(points), roofline.step(counts, passes, card, setting), None)


def _refusal(subject: Subject, config: PlanConfig, card: Card, stage: Stage) -> str:
    """The least memory that the stage would need; where the given flags are the reason, flags that fit."""
    least = _least(subject, config, card, stage)
    need = least.peak.total / GIB / (1 - MARGIN)
    lengths = f"{config.max_prompt_tokens} + {config.max_response_tokens} tokens"
    given = {
        name: value
        for name in ("micro_batch_size", "generation_batch_size", "gradient_checkpointing", "advantage")
        if (value := getattr(config, name)) is not None
    }
    if given:
        flags = ", ".join(f"{name} {value}" for name, value in given.items())
        open_config = replace(config, **dict.fromkeys(given))  # type: ignore[arg-type]
        best = _fastest_of_any_role(subject, open_config, card, stage)
        if best is not None:
            return (
                f"{stage.name} of {subject.name} with {flags} needs {need:.1f} GiB ({lengths}), a card of {card.gib:g} "
                f"GiB has less{_larger_card(need)}. What fits: {'; '.join(_flags(best.setting, stage))}"
            )
    return (
        f"{stage.name} of {subject.name} does not fit a card of {card.gib:g} GiB: with the least that can be asked for "
        f"it needs {need:.1f} GiB ({lengths}){_larger_card(need)}. The largest part is {_largest_part(least.peak)}. "
        "Take a smaller model, a larger card, or lower --max_prompt_tokens and --max_response_tokens"
    )


def _least(subject: Subject, config: PlanConfig, card: Card, stage: Stage) -> StagePlan:
    """The plan with the least memory."""
    plans = [
        _plan(subject, config, card, stage, setting)
        for value_role in _value_roles(config, stage)
        for setting in _settings(config, stage, value_role)
    ]
    return min(plans, key=lambda plan: plan.peak.total)


def _larger_card(need: float) -> str:
    """The smallest card of the table with that many GiB."""
    if need > LARGEST.gib:
        return f", more than any card listed here ({LARGEST.gib} GiB)"
    return f"; a card of {next(card.gib for card in CARDS if card.gib >= need)} GiB would do"


def _largest_part(point: MemoryPoint) -> str:
    part = max(point.parts, key=lambda name: point.parts[name])
    return f"{part}, {point.parts[part] / GIB:.1f} GiB"


def _flags(setting: Setting, stage: Stage) -> list[str]:
    flags = [f"--micro_batch_size {setting.micro_batch}"]
    if stage.use == "sampled":
        flags.append(f"--generation_batch_size {setting.generation_batch}")
    if setting.checkpointing:
        flags.append("--gradient_checkpointing true")
    if not setting.value_role:
        flags.append(f"--advantage rloo --samples_per_prompt {SIBLINGS}")
    return flags
