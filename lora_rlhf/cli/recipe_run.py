"""Runs a recipe: its steps one after the other, on one base in memory. Steps that finished before are skipped."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lora_rlhf.cli.recipe import Section, outputs, read_recipe
from lora_rlhf.configs.catalogue import BY_NAME, BY_ROLE, SFT, STAGES
from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.marks import SAFE_TO_CHANGE_ON_RESUME, fields_with_mark, former_names, with_new_names
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.configs.values import read_yaml, to_yaml
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.release.exports import read_export
from lora_rlhf.runs.folder import adapter_hash, find_stage, has_stage
from lora_rlhf.runs.resume import Lock
from lora_rlhf.system import workers
from lora_rlhf.system.disk import remove_folder, remove_temporary, write_json, write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import make_folder
from lora_rlhf.system.typed_json import to_json
from lora_rlhf.tinyworld.config import LabelConfig, TinyworldConfig
from lora_rlhf.tinyworld.datasets import label, make

if TYPE_CHECKING:  # else a faulty recipe would be refused only after torch and transformers were imported
    from lora_rlhf.evaluation.report_model import Report
    from lora_rlhf.model.shared import SharedModel

TITLES = {
    "tinyworld": "data of the tiny world",
    "sample": "responses to be ranked",
    "label": "rankings by simulated labelers",
    **{stage.name: stage.title for stage in STAGES},
    "evaluate": "evaluation",
    "export": "export",
}
RECIPE, REPORT = "recipe.yaml", "report.json"


def run_recipe(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> "Report | None":
    """Runs every step of a recipe that has not finished before; returns the evaluation's report, if it has one.

    `overrides` replace keys at the top of the recipe.

    Raises:
        UserError: before anything starts: every fault of every section; another process that runs a recipe there.
        RuntimeError: the base was written to.
    """
    configs = read_recipe(source, overrides)
    run = Path(next(config.run for config in configs.values() if isinstance(config, StageConfig)))
    lock = Lock(run / ".recipe.lock")
    try:
        finished = workers.from_main(lambda: _lock_and_find_finished(run, configs, lock))
        evaluation = configs.get("evaluate")
        folder = Path(evaluation.folder) if isinstance(evaluation, EvaluateConfig) else run
        return _run_steps(configs, finished, folder / REPORT)
    finally:
        lock.release()


def _run_steps(configs: Mapping[str, Section], finished: list[str], report_path: Path) -> "Report | None":
    """Runs what is left: the steps on the shared base first, then the export, which loads a base of its own."""
    headers = {name: f"[{number}/{len(configs)}] {TITLES[name]}" for number, name in enumerate(configs, start=1)}
    skipped = {name: f"{headers[name]}: finished before, skipped" for name in finished}
    for name in finished:
        if name != "export":
            _print_in_main_process(skipped[name])
    remaining = {name: config for name, config in configs.items() if name not in finished}
    export = remaining.pop("export", None)
    report = _run_stages(configs, remaining, headers, report_path)
    if "export" in finished:
        _print_in_main_process(skipped["export"])
    if isinstance(export, ExportConfig):
        from lora_rlhf.model.memory import free_memory

        free_memory()  # an export loads a base of its own
        with _announced_step(headers["export"]):
            workers.from_main(functools.partial(_export_anew, export))
    return report


def _run_stages(
    configs: Mapping[str, Section], remaining: Mapping[str, Section], headers: Mapping[str, str], report_path: Path
) -> "Report | None":
    """Runs the remaining steps on one base; returns the evaluation's report, if there is one."""
    model, digest, report = None, "", None
    seconds: dict[str, float] = {}
    for name, config in remaining.items():
        with _announced_step(headers[name]) as timing:
            if isinstance(config, StageConfig) and model is None:
                model = _open_base(configs, remaining)
                digest = model.base_digest()
            report = _run_step(name, config, model) or report
        seconds[name] = timing[0]
        if isinstance(config, StageConfig):
            from lora_rlhf.stages.interrupt import stop_if_asked

            stop_if_asked(TITLES[name])
    if model is not None and model.base_digest() != digest:
        raise RuntimeError("the base model was written to during this run: its adapters can not be trusted")
    if report is not None and workers.is_main():
        report.base_unchanged, report.seconds = True, report.seconds | seconds
        write_json(report_path, to_json(report))
        _print_report(report, report_path)
    return report


@contextlib.contextmanager
def _announced_step(header: str) -> Iterator[list[float]]:
    """Prints that a step begins, and after the block its seconds, which are then in the list too."""
    _print_in_main_process(header)
    started, timing = time.monotonic(), list[float]()
    yield timing
    timing.append(round(time.monotonic() - started, 2))
    _print_in_main_process(f"{header}: {timing[0]:.1f} s")


def _lock_and_find_finished(run: Path, configs: Mapping[str, Section], lock: Lock) -> list[str]:
    """The steps that finished before. Acquires the lock, and writes the recipe as it is now into the run."""
    steps = (name for name in configs if name != "evaluate")  # it always runs, and no other step depends on it
    finished = list(itertools.takewhile(lambda name: _is_finished(name, configs[name]), steps))
    _require_same_settings(run, configs, finished)
    make_folder(run)
    lock.acquire()
    for folder in {run, *(path.parent for config in configs.values() for path in outputs(config))}:
        remove_temporary(folder, "*")
    resolved = {name: _plain_values(config) for name, config in configs.items()}
    write_text(run / RECIPE, yaml.safe_dump(resolved, sort_keys=False))
    return finished


def _print_in_main_process(text: str) -> None:
    if workers.is_main():
        print(text, flush=True)


def _is_finished(name: str, config: Section) -> bool:
    """Whether an earlier attempt completed this step."""
    if isinstance(config, ExportConfig):
        return _is_current(config)
    if files := outputs(config):
        return all(path.is_file() for path in files)
    return isinstance(config, StageConfig) and has_stage(config.run, name)


def _is_current(config: ExportConfig) -> bool:
    """Whether there is a complete export of the stage as it is in the run now."""
    assert config.to is not None  # else the configuration was at fault
    stage = BY_ROLE[config.role].name
    if not has_stage(config.folder, stage):
        return False
    parent = find_stage(Path(config.folder) / stage, stage)
    try:
        export = read_export(Path(config.to))
    except UserError:  # none, or an incomplete one
        return False
    return export.id == parent.manifest["id"] and export.adapter == adapter_hash(parent.folder)


def _require_same_settings(run: Path, configs: Mapping[str, Section], finished: list[str]) -> None:
    """UserError when a finished step was made with other settings than the recipe has now."""
    recipe = read_yaml(run / RECIPE) if (run / RECIPE).is_file() else {}
    faults = []
    for name in finished:
        kind = type(configs[name])
        before = with_new_names(former_names(kind), recipe.get(name, {}), None)
        safe = fields_with_mark(kind, SAFE_TO_CHANGE_ON_RESUME)
        faults += [
            f"{name}: {key} is {value!r} now and was {before[key]!r} when this step finished"
            for key, value in _plain_values(configs[name]).items()
            if key not in safe and key in before and before[key] != value
        ]
    if faults:
        raise UserError("\n".join([*faults, f"choose another --run, or delete {run} to begin again"]))


def _plain_values(config: Section) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return values


def _open_base(configs: Mapping[str, Section], remaining: Mapping[str, Section]) -> "SharedModel":
    """The base that every stage of this process shares."""
    from lora_rlhf.model.base import BaseSpec, load_base
    from lora_rlhf.model.open import open_base
    from lora_rlhf.model.shared import SharedModel

    stages = [config for config in configs.values() if isinstance(config, StageConfig)]
    checkpointing = any(stage.gradient_checkpointing for stage in stages)
    sft = configs.get(SFT.name)
    if not isinstance(sft, SFTConfig) or SFT.name not in remaining:
        parent = find_stage(Path(stages[0].run) / SFT.name, SFT.name)
        trusted = any(stage.trust_remote_code for stage in stages)
        return open_base(parent.manifest["base"], workers.device_of_process(stages[0].device), checkpointing, trusted)
    spec = BaseSpec(sft.model, sft.quantization, sft.compute_dtype, sft.trust_remote_code)
    model = SharedModel(load_base(spec, workers.device_of_process(sft.device)))
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _run_step(name: str, config: Section, model: "SharedModel | None") -> "Report | None":
    """Runs one step. Returns the evaluation's report, None for other steps."""
    if isinstance(config, TinyworldConfig):
        workers.from_main(functools.partial(make, config))
        return None
    if isinstance(config, LabelConfig):
        workers.from_main(functools.partial(label, config))
        return None
    assert isinstance(config, StageConfig)  # an export does not run on this base
    from lora_rlhf.evaluation.report import evaluate
    from lora_rlhf.stages import sample
    from lora_rlhf.tinyworld.probes import WORLD

    # results that are there were made before the step's parent was made again
    has_old_results = has_stage(config.run, name) or any(path.exists() for path in outputs(config))
    config = dataclasses.replace(config, overwrite=has_old_results or name == "evaluate")
    match config:
        case SampleConfig():
            sample.sample(config, model)
        case EvaluateConfig():
            return workers.from_main(lambda: evaluate(config, model, world=WORLD))
        case _:
            BY_NAME[name].train(config, model)
    return None


def _export_anew(config: ExportConfig) -> None:
    """Makes the export, in place of one that is there, and prints its parity table."""
    from lora_rlhf.exporting.export import export
    from lora_rlhf.exporting.parity_table import parity_table

    assert config.to is not None
    to = Path(config.to)
    if to.exists():  # made before its stage was made again
        remove_folder(to)
    print(f"{parity_table(export(config)['parity'])}\n", flush=True)


def _print_report(report: "Report", report_path: Path) -> None:
    from lora_rlhf.evaluation.markdown import terminal_tables

    print(f"\n{terminal_tables(report)}\n\nThe base is unchanged. Every figure: {report_path}")
