"""`lora-rlhf plan`: prints a table of memory parts with command lines, a table of models and cards, or JSON."""

import json
from dataclasses import MISSING, asdict, replace
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.catalogue import DPO, PPO
from lora_rlhf.configs.values import check
from lora_rlhf.model.targets import note_without_adapter
from lora_rlhf.plan.cards import COMMON, GIB, Card, find_card
from lora_rlhf.plan.choose import RunPlan, StagePlan, choose_plan
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.roofline import UNCERTAINTY
from lora_rlhf.plan.shapes import SHAPES
from lora_rlhf.plan.subject import MeasuredModel, measure_model
from lora_rlhf.system.errors import UserError

LIMITS = ("max_prompt_tokens", "max_response_tokens")
BASE_FLAGS = ("quantization", "compute_dtype", "lora_rank", "lora_targets")  # flags of the stage that fixes the base
SAMPLING_FLAGS = ("batch_size", "minibatch_size", "num_epochs")


def print_plan(config: PlanConfig) -> None:
    """Prints the plan. Raises UserError for a model that cannot be measured or does not fit the card."""
    check(config)
    if config.table:
        rows = plan_popular_models(config)
        print(json.dumps(rows, indent=2) if config.json else models_table_markdown(config, rows))
        return
    card = find_card(config)
    run_plan = choose_plan(measure_model(config), config, card)
    print(json.dumps(plan_json(run_plan, config), indent=2) if config.json else plan_text(run_plan, config))


def command_lines(run_plan: RunPlan, config: PlanConfig) -> list[str]:
    """The command line of each stage, with all flags that differ from their defaults."""
    return [
        " ".join([f"lora-rlhf {name} --run runs/mine", *_stage_flags(stage_plan, run_plan, config)])
        for name, stage_plan in run_plan.stages.items()
    ]


def _stage_flags(stage_plan: StagePlan, run_plan: RunPlan, config: PlanConfig) -> list[str]:
    """The flags of a stage's command line."""
    stage, setting, is_sampling = stage_plan.stage, stage_plan.setting, stage_plan.iteration is not None
    fixes_base = stage.has_setting("model") and stage.config.__dataclass_fields__["model"].default is MISSING
    flags = [f"--model {run_plan.model.name}"] if fixes_base else []
    flags += [f"--{stage.trains_on} {stage.trains_on}.jsonl", f"--micro_batch_size {setting.micro_batch}"]
    if is_sampling:
        flags.append(f"--generation_batch_size {setting.generation_batch}")
    if setting.checkpointing:
        flags.append("--gradient_checkpointing true")
    if is_sampling and not setting.value_role:
        flags.append(f"--advantage {run_plan.advantage} --samples_per_prompt {setting.samples_per_prompt}")
    if stage is DPO and _is_not_default(config, "minibatch_size"):
        flags.append(f"--batch_size {config.minibatch_size // 2}")  # prompts, of two answers each
    names = (*LIMITS, *(BASE_FLAGS if fixes_base else ()), *(SAMPLING_FLAGS if is_sampling else ()))
    return flags + [f"--{name} {_flag_text(getattr(config, name))}" for name in names if _is_not_default(config, name)]


def _flag_text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def plan_text(run_plan: RunPlan, config: PlanConfig) -> str:
    """The plan as a text for the terminal."""
    model, card, plans = run_plan.model, run_plan.card, run_plan.stages
    lengths = f"{config.max_prompt_tokens} + {config.max_response_tokens} tokens, rank {config.lora_rank}"
    lines = [
        f"{model.name}: {model.counts.family}, {model.counts.parameters / 1e9:.2f} billion parameters in "
        f"{model.counts.layers} layers",
        f"a card of {card.gib:.4g} GiB ({card.bandwidth:.4g} GB/s and {card.tflops:.4g} TFLOP/s, as the {card.name} "
        f"has: {card.source}); "
        f"{lengths}",
        "",
        f"{'peak, GiB':<24}" + "".join(f"{name:>9}" for name in plans),
    ]
    peaks = [stage_plan.peak for stage_plan in plans.values()]
    for part in dict.fromkeys(name for peak in peaks for name in peak.parts):
        lines.append(f"  {part:<22}" + "".join(f"{peak.parts.get(part, 0) / GIB:>9.2f}" for peak in peaks))
    lines.append(f"  {'in all':<22}" + "".join(f"{peak.total / GIB:>9.2f}" for peak in peaks))
    if note := note_without_adapter(model.counts.without_adapter, config.lora_targets):
        lines.append(note)
    lines += [f"{name} is at its highest in: {peak.name}" for name, peak in zip(plans, peaks, strict=True)]
    lines += ["", *map(_seconds_line, plans.values())]
    lines += [
        "seconds are a roofline's; neither they nor what the driver and kernels take were measured on such a card"
    ]
    return "\n".join([*lines, "", *command_lines(run_plan, config)])


def _seconds_line(stage_plan: StagePlan) -> str:
    """A line with the seconds of a stage's step or iteration and their uncertainty."""
    name, setting, seconds = stage_plan.stage.name, stage_plan.setting, stage_plan.iteration
    if seconds is None:
        return f"{name}: {_span_text(stage_plan.seconds)} an optimizer step of {setting.minibatch} responses"
    parts = f"rollout {seconds.rollout:.0f}, scoring {seconds.scoring:.0f}, update {seconds.update:.0f}"
    return f"{name}: {_span_text(seconds.total)} an iteration of {setting.batch} responses ({parts})"


def _span_text(seconds: float) -> str:
    return f"about {seconds:.0f} s ({seconds / UNCERTAINTY:.0f} to {seconds * UNCERTAINTY:.0f})"


def plan_json(run_plan: RunPlan, config: PlanConfig) -> dict[str, Any]:
    """The whole plan, in bytes and seconds."""
    return {
        "model": run_plan.model.name,
        "family": run_plan.model.counts.family,
        "parameters": run_plan.model.counts.parameters,
        "share_without_adapter": run_plan.model.counts.without_adapter,
        "card": asdict(run_plan.card),
        "prompt_tokens": config.max_prompt_tokens,
        "response_tokens": config.max_response_tokens,
        "seconds_are_within_a_factor_of": UNCERTAINTY,
        "stages": {name: _stage_json(stage_plan) for name, stage_plan in run_plan.stages.items()},
        "commands": command_lines(run_plan, config),
    }


def _stage_json(stage_plan: StagePlan) -> dict[str, Any]:
    """The plan of a stage, in bytes and seconds."""
    peak = stage_plan.peak
    return {
        "setting": asdict(stage_plan.setting),
        "peak_bytes": round(peak.total),
        "allocated_bytes": round(peak.allocated),
        "peak_at": peak.name,
        "parts": {part: round(size) for part, size in peak.parts.items()},
        "heights": {point.name: round(point.total) for point in stage_plan.points},
        "seconds": round(stage_plan.seconds, 2),
        **({} if stage_plan.iteration is None else {"seconds_of": asdict(stage_plan.iteration)}),
    }


def plan_popular_models(config: PlanConfig) -> list[dict[str, Any]]:
    """PPO's setting, peak and seconds for each popular model on each card; None if it does not fit."""
    rows = []
    config = replace(config, stage=PPO.name)
    for name in tqdm(SHAPES, desc="models", unit="model"):
        model = measure_model(replace(config, model=name))
        cards = {f"{card.gib:g}": _table_cell(model, config, card) for card in COMMON}
        rows.append({"model": name, "parameters": model.counts.parameters, "cards": cards})
    return rows


def _table_cell(model: MeasuredModel, config: PlanConfig, card: Card) -> dict[str, Any] | None:
    """PPO's setting, peak and seconds for a model on a card; None if it does not fit."""
    try:
        ppo = choose_plan(model, config, card).stages[PPO.name]
    except UserError:
        return None
    return {**asdict(ppo.setting), "peak_gib": round(ppo.peak.total / GIB, 2), "seconds": round(ppo.seconds)}


def models_table_markdown(config: PlanConfig, rows: list[dict[str, Any]]) -> str:
    """The table of models as Markdown: micro-batch, generation batch, and seconds of an iteration on each card."""
    header = " | ".join(f"{card.gib:g} GiB" for card in COMMON)
    lines = [
        f"PPO with {config.max_prompt_tokens} + {config.max_response_tokens} tokens, {config.batch_size} responses an "
        "iteration: responses trained on and generated at a time, seconds an iteration. c: gradient checkpointing, "
        "r: without a value role, -: does not fit",
        "",
        f"| model | {header} |",
        f"|---|{'---|' * len(COMMON)}",
    ]
    for row in rows:
        lines.append(f"| {row['model']} | " + " | ".join(_cell_text(cell) for cell in row["cards"].values()) + " |")
    return "\n".join(lines)


def _cell_text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    marks = ("c" if cell["checkpointing"] else "") + ("" if cell["value_role"] else "r")
    return f"{cell['micro_batch']}{marks}, {cell['generation_batch']}, {cell['seconds']} s"


def _is_not_default(config: PlanConfig, name: str) -> bool:
    """Whether a flag differs from its default."""
    return bool(getattr(config, name) != PlanConfig.__dataclass_fields__[name].default)
