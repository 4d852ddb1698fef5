"""A recipe: every stage of a run from one YAML file, on one base in memory; what finished before is not done again."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lora_rlhf import workers
from lora_rlhf.config import EvaluateConfig, PPOConfig, RewardConfig, SampleConfig, SFTConfig
from lora_rlhf.data.locate import locate
from lora_rlhf.disk import write_json, write_text
from lora_rlhf.errors import UserError
from lora_rlhf.run import find_stage, has_stage
from lora_rlhf.settings import check, from_dict, read_yaml, to_yaml
from lora_rlhf.stage_config import HARMLESS, StageConfig
from lora_rlhf.tinyworld.datasets import LabelConfig, TinyworldConfig, label, make
from lora_rlhf.tinyworld.gold import score

if TYPE_CHECKING:  # torch and transformers: seconds that a faulty recipe need not wait
    from lora_rlhf.model.shared import SharedModel

Section = TinyworldConfig | LabelConfig | StageConfig

# In the order in which they run.
KINDS: dict[str, type[Section]] = {
    "tinyworld": TinyworldConfig,
    "sft": SFTConfig,
    "sample": SampleConfig,
    "label": LabelConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "evaluate": EvaluateConfig,
}
TITLES = {
    "tinyworld": "data of the tiny world",
    "sft": "supervised fine-tuning",
    "sample": "responses to be ranked",
    "label": "rankings by simulated labelers",
    "reward": "reward model",
    "ppo": "PPO",
    "evaluate": "evaluation",
}
# Keys at the top of a recipe hold for every section that has them.
COMMON = (
    *("run", "seed", "device", "model", "quantization", "compute_dtype", "trust_remote_code", "gradient_checkpointing"),
    *("micro_batch_size", "generation_batch_size", "max_prompt_tokens", "max_response_tokens"),
    *("long_responses", "strict", "save_every", "keep_checkpoints", "report_to", "allow_changes", "resume"),
)
INPUTS = ("demonstrations", "prompts", "selection_prompts", "candidates", "rankings", "agreement", "pretraining_text")
RECIPE, REPORT = "recipe.yaml", "report.json"


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
        """Nothing can be wrong with these by themselves; the recipe is checked as a whole when it is read."""
        return []

    @property
    def overrides(self) -> dict[str, Any]:
        """What was asked for in place of the recipe's own values."""
        return {key: value for key, value in vars(self).items() if key != "config" and value not in (None, False)}


def run_recipe(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Runs every step of a recipe that has not finished before; returns the evaluation's report, empty without one.

    `overrides` stand in place of keys at the top of the recipe.

    Raises:
        UserError: before anything starts, with every fault of every section.
        RuntimeError: the base was written to.
    """
    configs = read_recipe(source, overrides)
    run = Path(next(config.run for config in configs.values() if isinstance(config, StageConfig)))
    finished = workers.from_main(lambda: _begin(run, configs))

    model, digest = None, ""
    report: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for number, (name, config) in enumerate(configs.items(), start=1):
        header = f"[{number}/{len(configs)}] {TITLES[name]}"
        if name in finished:
            _say(f"{header}: finished before, skipped")
            continue
        _say(header)
        started = time.monotonic()
        if isinstance(config, StageConfig) and model is None:
            model = _open_base(configs, finished)
            digest = model.base_digest()
        report |= _run_step(name, config, model)
        seconds[name] = round(time.monotonic() - started, 2)
        _say(f"{header}: {seconds[name]:.1f} s")
    if model is not None and model.base_digest() != digest:
        raise RuntimeError("the base model was written to during this run: its adapters can not be trusted")
    if report and workers.is_main():
        report |= {"base_unchanged": True, "seconds": report["seconds"] | seconds}
        write_json(run / REPORT, report)
        _print_report(report, run / REPORT)
    return report


def _begin(run: Path, configs: Mapping[str, Section]) -> list[str]:
    """The steps that finished before. Writes down what the recipe is now."""
    finished = list(itertools.takewhile(lambda name: _is_finished(name, configs[name]), configs))
    _require_same_settings(run, configs, finished)
    run.mkdir(parents=True, exist_ok=True)
    resolved = {name: _plain(config) for name, config in configs.items()}
    write_text(run / RECIPE, yaml.safe_dump(resolved, sort_keys=False))
    return finished


def _say(text: str) -> None:
    if workers.is_main():
        print(text, flush=True)


def read_recipe(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Section]:
    """The configuration of each section that the recipe has, in the order in which they run.

    UserError with every fault: unknown keys, values out of range, input files that are not there and that no earlier
    section writes.
    """
    place = "recipe" if isinstance(source, Mapping) else str(source)
    values = {**(source if isinstance(source, Mapping) else read_yaml(source)), **(overrides or {})}
    run = values.get("run")
    if not isinstance(run, str) or not run:
        raise UserError(f"{place}: run is {run!r}; name a run folder, for example run: runs/first, or give --run")
    known = (*COMMON, *KINDS)
    unknown = [key for key in values if key not in known]
    faults = [f"{place}: unknown key {key!r}; at the top may stand: {', '.join(known)}" for key in unknown]
    if not any(name in values for name in KINDS if name not in ("tinyworld", "label")):
        faults.append(f"{place}: no stage to run; add a section: {', '.join(KINDS)}")
    configs: dict[str, Section] = {}
    for name in (name for name in KINDS if name in values):
        try:
            configs[name] = _read_section(name, values, place)
            check(configs[name])
        except UserError as error:
            faults.append(str(error))
    evaluation, policy = configs.get("evaluate"), configs.get("ppo")
    if isinstance(evaluation, EvaluateConfig) and isinstance(policy, PPOConfig):  # what was named once is named
        sft, reward = evaluation.sft or policy.sft, evaluation.reward or policy.reward
        configs["evaluate"] = dataclasses.replace(evaluation, sft=sft, reward=reward)
    if len(configs) == sum(name in values for name in KINDS):  # else who writes what is not known
        faults += _missing_inputs(configs, place)
    if faults:
        raise UserError("\n".join(faults))
    return configs


def _read_section(name: str, values: Mapping[str, Any], place: str) -> Section:
    section = values[name] if values[name] is not None else {}
    if not isinstance(section, dict):
        raise UserError(f"{place}: {name} is {section!r}, expected keys and values")
    run = values["run"]
    if "overwrite" in section:
        raise UserError(f"{place}: {name}: overwrite has no place here; to repeat the stage, delete {run}/{name}")
    fields = {field.name for field in dataclasses.fields(KINDS[name])}
    merged = {key: values[key] for key in COMMON if key in values and key in fields} | section
    filled = {key: value.replace("{run}", run) if isinstance(value, str) else value for key, value in merged.items()}
    return from_dict(KINDS[name], filled, f"{place}: {name}")


def _missing_inputs(configs: Mapping[str, Section], place: str) -> list[str]:
    """Files that a section wants to read and that neither exist nor are written by a section before it."""
    faults, written = [], set()
    for name, config in configs.items():
        inputs = {key: value for key, value in vars(config).items() if key in INPUTS and value is not None}
        for key, value in inputs.items():
            if Path(value) in written:
                continue
            try:
                locate(value)
            except UserError as error:
                faults.append(f"{place}: {name}: {key}: {error}; and no section before it writes it")
        written |= set(_outputs(config))
    return faults


def _outputs(config: Section) -> list[Path]:
    """The data files that a step leaves."""
    if isinstance(config, TinyworldConfig):
        return list(config.files.values())
    if isinstance(config, SampleConfig):
        return [Path(config.to)]
    if isinstance(config, LabelConfig):
        return [Path(path) for path in (config.to, config.agreement_to) if path is not None]
    return []


def _is_finished(name: str, config: Section) -> bool:
    """Whether an earlier attempt left this step complete. An evaluation is always made anew."""
    if outputs := _outputs(config):
        return all(path.is_file() for path in outputs)
    return isinstance(config, StageConfig) and name != "evaluate" and has_stage(config.run, name)


def _require_same_settings(run: Path, configs: Mapping[str, Section], finished: list[str]) -> None:
    """UserError when a finished step was made with other settings than the recipe has now."""
    before = read_yaml(run / RECIPE) if (run / RECIPE).is_file() else {}
    faults = [
        f"{name}: {key} is {value!r} now and was {before[name][key]!r} when this step finished"
        for name in finished
        for key, value in _plain(configs[name]).items()
        if key not in HARMLESS and key in before.get(name, {}) and before[name][key] != value
    ]
    if faults:
        raise UserError("\n".join([*faults, f"choose another --run, or delete {run} to begin again"]))


def _plain(config: Section) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return values


def _open_base(configs: Mapping[str, Section], finished: list[str]) -> "SharedModel":
    """The base that every stage of this process shares."""
    from lora_rlhf.model.base import BaseSpec, load_base
    from lora_rlhf.model.open import open_base
    from lora_rlhf.model.shared import SharedModel

    stages = [config for config in configs.values() if isinstance(config, StageConfig)]
    checkpointing = any(stage.gradient_checkpointing for stage in stages)
    sft = configs.get("sft")
    if not isinstance(sft, SFTConfig) or "sft" in finished:
        parent = find_stage(Path(stages[0].run) / "sft", "sft")
        trusted = any(stage.trust_remote_code for stage in stages)
        return open_base(parent.manifest["base"], workers.device(stages[0].device), checkpointing, trusted)
    spec = BaseSpec(sft.model, sft.quantization, sft.compute_dtype, sft.trust_remote_code)
    model = SharedModel(load_base(spec, workers.device(sft.device)))
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _run_step(name: str, config: Section, model: "SharedModel | None") -> dict[str, Any]:
    """Runs one step. Returns the evaluation's report, empty for other steps."""
    if isinstance(config, TinyworldConfig):
        workers.from_main(functools.partial(make, config))
        return {}
    if isinstance(config, LabelConfig):
        workers.from_main(functools.partial(label, config))
        return {}
    from lora_rlhf.evaluate.report import evaluate
    from lora_rlhf.stages import ppo, reward, sample, sft

    # made before its parent was made anew
    left_over = has_stage(config.run, name) or name == "evaluate" or any(path.exists() for path in _outputs(config))
    config = dataclasses.replace(config, overwrite=left_over)
    match config:
        case SFTConfig():
            sft.train(config, model)
        case SampleConfig():
            sample.sample(config, model)
        case RewardConfig():
            reward.train(config, model)
        case PPOConfig():
            ppo.train(config, model)
        case EvaluateConfig():
            return workers.from_main(lambda: evaluate(config, model, gold=score))
    return {}


def _print_report(report: dict[str, Any], place: Path) -> None:
    from lora_rlhf.evaluate.report import table

    print(f"\n{table(report)}\n\nThe base is unchanged. Every figure: {place}")
