"""Chooses the fastest flags that fit a card, for each stage; raises an error if none fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lora_rlhf.configs.catalogue import BY_NAME, DPO, STAGES, Stage
from lora_rlhf.model.decode_weights import GPU_SHARE
from lora_rlhf.plan.cards import CARDS, GIB, Card
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.memory import MemoryPoint, Setting, highest_point, memory_points, merged_bytes
from lora_rlhf.plan.roofline import IterationSeconds, Roofline
from lora_rlhf.plan.subject import MeasuredModel
from lora_rlhf.system.errors import UserError

SIZES = tuple(2**power for power in range(8))
MARGIN = 0.05  # share of a card that stays free, because a prediction may be too low by as much
SIBLINGS = 4  # responses to one prompt without a value role, which are compared with each other


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. `peak` is the highest of `points`.

    seconds: of an optimizer step, or of an iteration if the stage samples responses; `iteration` has its parts.
    """

    stage: Stage
    setting: Setting
    points: list[MemoryPoint]
    peak: MemoryPoint
    seconds: float
    iteration: IterationSeconds | None


@dataclass(frozen=True)
class RunPlan:
    """The plans of all stages on one card, by the stage's name. `advantage`: for the stages that sample responses."""

    model: MeasuredModel
    card: Card
    advantage: str
    stages: dict[str, StagePlan]


def choose_plan(model: MeasuredModel, config: PlanConfig, card: Card) -> RunPlan:
    """The fastest plan that fits, with the given flags. Raises UserError with the needed memory if none fits."""
    stages: dict[str, StagePlan] = {}
    for stage in STAGES if config.stage is None else (BY_NAME[config.stage],):
        plan = _find_fastest_of_any_role(model, config, card, stage)
        if plan is None:
            raise UserError(_refusal_message(model, config, card, stage))
        stages[stage.name] = plan
    has_value_role = all(plan.setting.value_role for plan in stages.values())
    return RunPlan(model, card, config.advantage or ("gae" if has_value_role else "rloo"), stages)


def can_fit(point: MemoryPoint, card: Card) -> bool:
    """Whether the card has enough memory, with a margin for errors of the plan."""
    return point.total <= card.gib * GIB * (1 - MARGIN)


def _value_role_choices(config: PlanConfig, stage: Stage) -> tuple[bool, ...]:
    """The choices to try, best first: True = plan with a value role. Stages that do not sample ignore it."""
    if stage.use != "sampled":
        return (True,)
    return (True, False) if config.advantage is None else (config.advantage == "gae",)


def _find_fastest_of_any_role(model: MeasuredModel, config: PlanConfig, card: Card, stage: Stage) -> StagePlan | None:
    """The fastest plan with a value role; or, if none fits, the fastest without one; None if none fits."""
    plans = (_find_fastest(model, config, card, stage, value_role) for value_role in _value_role_choices(config, stage))
    return next((plan for plan in plans if plan is not None), None)


def _find_fastest(
    model: MeasuredModel, config: PlanConfig, card: Card, stage: Stage, value_role: bool
) -> StagePlan | None:
    """The fastest plan that fits; of equally fast ones, the one with the least memory; None if none fits."""
    plans = [
        _make_stage_plan(model, config, card, stage, setting)
        for setting in _possible_settings(config, stage, value_role)
    ]
    return min(
        (plan for plan in plans if can_fit(plan.peak, card)),
        key=lambda plan: (round(plan.seconds, 2), plan.peak.total),
        default=None,
    )


def _possible_settings(config: PlanConfig, stage: Stage, value_role: bool) -> Iterator[Setting]:
    """Yields all settings that have the given flags."""
    checkpointings = (False, True) if config.gradient_checkpointing is None else (config.gradient_checkpointing,)
    micro_batches = [size for size in SIZES if size <= config.minibatch_size]
    generation_batches = [size for size in SIZES if size <= config.batch_size] if stage.use == "sampled" else [1]
    if config.micro_batch_size is not None:
        micro_batches = [config.micro_batch_size]
    if config.generation_batch_size is not None:
        generation_batches = [config.generation_batch_size]
    for micro_batch in micro_batches:
        for generation_batch in generation_batches:
            for checkpointing in checkpointings:
                yield Setting(
                    micro_batch,
                    generation_batch,
                    checkpointing,
                    config.lora_rank,
                    value_role,
                    config.minibatch_size,
                    config.batch_size,
                    1 if value_role or config.advantage == "reinforce" else SIBLINGS,
                )


def _make_stage_plan(model: MeasuredModel, config: PlanConfig, card: Card, stage: Stage, setting: Setting) -> StagePlan:
    """Predicts the memory and the seconds of a stage with this setting."""
    counts, passes = model.counts, model.passes
    points = memory_points(stage, counts, passes, setting, model.device, card.workspace_bytes)
    peak = highest_point(points)
    if stage.use == "sampled":
        has_room = merged_bytes(counts) <= GPU_SHARE * (card.gib * GIB - peak.total)
        iteration = Roofline(counts, passes, card, has_room).iteration_seconds(setting, config.num_epochs)
        return StagePlan(stage, setting, points, peak, iteration.total, iteration)
    roofline = Roofline(counts, passes, card)
    if stage is DPO:
        seconds = roofline.step_of_pairs_seconds(setting)
    else:
        seconds = roofline.step_of_data_seconds(setting, has_logprobs=not stage.scores)
    return StagePlan(stage, setting, points, peak, seconds, None)


def _refusal_message(model: MeasuredModel, config: PlanConfig, card: Card, stage: Stage) -> str:
    """The error message: the least memory that the stage needs, and flags that fit if the given ones do not."""
    smallest_plan = _find_smallest(model, config, card, stage)
    needed_gib = smallest_plan.peak.total / GIB / (1 - MARGIN)
    lengths = f"{config.max_prompt_tokens} + {config.max_response_tokens} tokens"
    values_by_flag = {
        name: value
        for name in ("micro_batch_size", "generation_batch_size", "gradient_checkpointing", "advantage")
        if (value := getattr(config, name)) is not None
    }
    if values_by_flag:
        flags = ", ".join(f"{name} {value}" for name, value in values_by_flag.items())
        open_config = replace(config, **dict.fromkeys(values_by_flag))  # type: ignore[arg-type]
        fastest_plan = _find_fastest_of_any_role(model, open_config, card, stage)
        if fastest_plan is not None:
            fitting_flags = "; ".join(_setting_flags(fastest_plan.setting, stage))
            return (
                f"{stage.name} of {model.name} with {flags} needs {needed_gib:.1f} GiB ({lengths}), a card of "
                f"{card.gib:g} GiB has less{_larger_card_text(needed_gib)}. What fits: {fitting_flags}"
            )
    return (
        f"{stage.name} of {model.name} does not fit a card of {card.gib:g} GiB: with the least that can be asked for "
        f"it needs {needed_gib:.1f} GiB ({lengths}){_larger_card_text(needed_gib)}. The largest part is "
        f"{_largest_part_text(smallest_plan.peak)}. Take a smaller model, a larger card, or lower --max_prompt_tokens "
        "and --max_response_tokens"
    )


def _find_smallest(model: MeasuredModel, config: PlanConfig, card: Card, stage: Stage) -> StagePlan:
    """The plan of the stage with the least memory."""
    plans = [
        _make_stage_plan(model, config, card, stage, setting)
        for value_role in _value_role_choices(config, stage)
        for setting in _possible_settings(config, stage, value_role)
    ]
    return min(plans, key=lambda plan: plan.peak.total)


def _larger_card_text(needed_gib: float) -> str:
    """A part of a sentence with the smallest card of the table that has so many GiB."""
    sizes = sorted(card.gib for card in CARDS)
    if needed_gib > sizes[-1]:
        return f", more than any card listed here ({sizes[-1]} GiB)"
    return f"; a card of {next(gib for gib in sizes if gib >= needed_gib)} GiB would do"


def _largest_part_text(point: MemoryPoint) -> str:
    part = max(point.parts, key=lambda name: point.parts[name])
    return f"{part}, {point.parts[part] / GIB:.1f} GiB"


def _setting_flags(setting: Setting, stage: Stage) -> list[str]:
    """The command-line flags of a setting."""
    flags = [f"--micro_batch_size {setting.micro_batch}"]
    if stage.use == "sampled":
        flags.append(f"--generation_batch_size {setting.generation_batch}")
    if setting.checkpointing:
        flags.append("--gradient_checkpointing true")
    if not setting.value_role:
        flags.append(f"--advantage rloo --samples_per_prompt {SIBLINGS}")
    return flags
