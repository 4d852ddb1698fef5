"""`lora-rlhf plan`: what was found, as a table of parts, command lines, a table of models and cards, or JSON."""

import json
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from lora_rlhf.configs.values import check
from lora_rlhf.plan.cards import CARDS, Card, card_of
from lora_rlhf.plan.choose import STAGES, Plan, StagePlan, choose
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.memory import GIB
from lora_rlhf.plan.roofline import UNCERTAINTY
from lora_rlhf.plan.shapes import SHAPES
from lora_rlhf.plan.subject import examine
from lora_rlhf.system.errors import UserError

DATA = {
    "sft": "--demonstrations demonstrations.jsonl",
    "reward": "--rankings rankings.jsonl",
    "ppo": "--prompts prompts.jsonl",
}
LIMITS = ("max_prompt_tokens", "max_response_tokens")
OF_SFT = ("quantization", "compute_dtype", "lora_rank")
OF_PPO = ("batch_size", "minibatch_size", "num_epochs")


def plan(config: PlanConfig) -> None:
    """Prints the plan. UserError for what cannot be planned or fits nowhere."""
    check(config)
    if config.table:
        rows = table(config)
        print(json.dumps(rows, indent=2) if config.json else show_table(config, rows))
        return
    card = card_of(config)
    found = choose(examine(config), config, card)
    print(json.dumps(as_json(found, config), indent=2) if config.json else show(found, config))


def commands(found: Plan, config: PlanConfig) -> list[str]:
    """The command line of each stage, with every flag that is not as it would be anyway."""
    lines = []
    for stage, chosen in found.stages.items():
        setting = chosen.setting
        flags = [f"--run runs/mine {'--model ' + found.subject.name + ' ' if stage == 'sft' else ''}{DATA[stage]}"]
        flags.append(f"--micro_batch_size {setting.micro_batch}")
        if stage == "ppo":
            flags.append(f"--generation_batch_size {setting.generation_batch}")
        if setting.checkpointing:
            flags.append("--gradient_checkpointing true")
        if stage == "ppo" and not setting.value_role:
            flags.append(f"--advantage {found.advantage} --samples_per_prompt {setting.samples_per_prompt}")
        own = {"sft": OF_SFT, "ppo": OF_PPO}.get(stage, ())
        flags += [f"--{name} {getattr(config, name)}" for name in (*LIMITS, *own) if _is_given(config, name)]
        lines.append(f"lora-rlhf {stage} {' '.join(flags)}")
    return lines


def show(found: Plan, config: PlanConfig) -> str:
    """What a person reads."""
    counts = found.subject.counts
    asked = f"{config.max_prompt_tokens} + {config.max_response_tokens} tokens, rank {config.lora_rank}"
    lines = [
        f"{found.subject.name}: {counts.family}, {counts.parameters / 1e9:.2f} billion parameters in {counts.layers} "
        "layers",
        f"a card of {found.card.gib:g} GiB ({found.card.bandwidth:g} GB/s and {found.card.tflops:g} TFLOP/s, as the "
        f"{found.card.name} has); {asked}",
        "",
        f"{'peak, GiB':<24}" + "".join(f"{stage:>9}" for stage in STAGES),
    ]
    tops = [found.stages[stage].top for stage in STAGES]
    for part in dict.fromkeys(name for top in tops for name in top.parts):
        lines.append(f"  {part:<22}" + "".join(f"{top.parts.get(part, 0) / GIB:>9.2f}" for top in tops))
    lines.append(f"  {'in all':<22}" + "".join(f"{top.total / GIB:>9.2f}" for top in tops))
    lines += [f"{stage} is at its highest in: {top.name}" for stage, top in zip(STAGES, tops, strict=True)]
    lines += ["", *_times(found), "", *commands(found, config)]
    return "\n".join(lines)


def _times(found: Plan) -> list[str]:
    """Seconds, with the span in which they are meant."""
    lines = []
    for stage in ("sft", "reward"):
        chosen = found.stages[stage]
        lines.append(f"{stage}: {_span(chosen.seconds)} an optimizer step of {chosen.setting.minibatch} responses")
    own = found.stages["ppo"].iteration
    assert own is not None
    parts = f"rollout {own.rollout:.0f}, scoring {own.scoring:.0f}, update {own.update:.0f}"
    lines.append(f"ppo: {_span(own.total)} an iteration of {found.stages['ppo'].setting.batch} responses ({parts})")
    return [
        *lines,
        "seconds are a roofline's; neither they nor what the driver and kernels take were measured on such a card",
    ]


def _span(seconds: float) -> str:
    return f"about {seconds:.0f} s ({seconds / UNCERTAINTY:.0f} to {seconds * UNCERTAINTY:.0f})"


def as_json(found: Plan, config: PlanConfig) -> dict[str, Any]:
    """Everything, in bytes and seconds."""
    return {
        "model": found.subject.name,
        "family": found.subject.counts.family,
        "parameters": found.subject.counts.parameters,
        "card": asdict(found.card),
        "prompt_tokens": config.max_prompt_tokens,
        "response_tokens": config.max_response_tokens,
        "seconds_are_within_a_factor_of": UNCERTAINTY,
        "stages": {stage: _stage_json(chosen) for stage, chosen in found.stages.items()},
        "commands": commands(found, config),
    }


def _stage_json(chosen: StagePlan) -> dict[str, Any]:
    return {
        "setting": asdict(chosen.setting),
        "peak_bytes": round(chosen.top.total),
        "allocated_bytes": round(chosen.top.allocated),
        "peak_at": chosen.top.name,
        "parts": {part: round(size) for part, size in chosen.top.parts.items()},
        "heights": {height.name: round(height.total) for height in chosen.heights},
        "seconds": round(chosen.seconds, 2),
        **({} if chosen.iteration is None else {"seconds_of": asdict(chosen.iteration)}),
    }


def table(config: PlanConfig) -> list[dict[str, Any]]:
    """For each popular model, PPO's setting, peak and seconds on each card; nothing where it does not fit."""
    rows = []
    for name in tqdm(SHAPES, desc="models", unit="model"):
        subject = examine(replace(config, model=name))
        cards = {f"{card.gib:g}": _cell(subject, config, card) for card in CARDS}
        rows.append({"model": name, "parameters": subject.counts.parameters, "cards": cards})
    return rows


def _cell(subject: Any, config: PlanConfig, card: Card) -> dict[str, Any] | None:
    try:
        chosen = choose(subject, config, card).stages["ppo"]
    except UserError:
        return None
    return {**asdict(chosen.setting), "peak_gib": round(chosen.top.total / GIB, 2), "seconds": round(chosen.seconds)}


def show_table(config: PlanConfig, rows: list[dict[str, Any]]) -> str:
    """Markdown: how many responses go through training and generation at a time, and seconds per iteration."""
    head = " | ".join(f"{card.gib:g} GiB" for card in CARDS)
    lines = [
        f"PPO with {config.max_prompt_tokens} + {config.max_response_tokens} tokens, {config.batch_size} responses an "
        "iteration: responses trained on and generated at a time, seconds an iteration. c: gradient checkpointing, "
        "r: without a value role, -: does not fit",
        "",
        f"| model | {head} |",
        f"|---|{'---|' * len(CARDS)}",
    ]
    for row in rows:
        lines.append(f"| {row['model']} | " + " | ".join(_short(cell) for cell in row["cards"].values()) + " |")
    return "\n".join(lines)


def _short(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    marks = ("c" if cell["checkpointing"] else "") + ("" if cell["value_role"] else "r")
    return f"{cell['micro_batch']}{marks}, {cell['generation_batch']}, {cell['seconds']} s"


def _is_given(config: PlanConfig, name: str) -> bool:
    """Whether a flag differs from what the stage would take by itself."""
    return bool(getattr(config, name) != PlanConfig.__dataclass_fields__[name].default)
