"""The commands: the configuration of each and the function that it calls. Heavy imports wait until that call."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf_demo.config import DemoConfig

from lora_rlhf import api
from lora_rlhf.chat.config import ChatConfig
from lora_rlhf.cli.config import RecipeConfig
from lora_rlhf.cli.recipe import next_steps_text, program, read_recipe
from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.cli.rounds import run_round
from lora_rlhf.cli.rounds_record import rounds_rows
from lora_rlhf.configs.catalogue import BY_ROLE, SFT, STAGES, WRITERS, Stage
from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.label import JudgeLabelConfig, ReviseConfig
from lora_rlhf.configs.rounds import RoundConfig, RoundsConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.doctor.config import DoctorConfig
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.inspection.config import CheckConfig, ConvertConfig, InspectConfig
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.release.config import GateConfig, PackageConfig, PromoteConfig, RollbackConfig
from lora_rlhf.render.tables import terminal_table
from lora_rlhf.runs.rounds import read_rounds
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError
from lora_rlhf.tinyworld.config import (
    LabelConfig,
    ProblemsConfig,
    ScoreConfig,
    TinyworldConfig,
    TracesConfig,
    WorkedConfig,
)
from lora_rlhf.tinyworld.datasets import label, make
from lora_rlhf.tinyworld.gold import score_request
from lora_rlhf.tinyworld.problems import make_problems
from lora_rlhf.tinyworld.requests import find_request
from lora_rlhf.tinyworld.traces import make_traces
from lora_rlhf.tinyworld.worked import make_worked_sums


def _doctor(config: DoctorConfig) -> None:
    from lora_rlhf.doctor.report import examine

    if not examine(config):
        raise SystemExit(1)


def _plan(config: PlanConfig) -> None:
    from lora_rlhf.plan.report import print_plan

    print_plan(config)


def _check(config: CheckConfig) -> None:
    from lora_rlhf.inspection.check import run_check

    run_check(config)


def _convert(config: ConvertConfig) -> None:
    from lora_rlhf.inspection.convert import convert

    rankings, rows, refused = convert(config)
    print(f"{config.to}: {rankings} rankings in {rows} rows, as {config.form}" + (f"\n{refused}" if refused else ""))


def _inspect(config: InspectConfig) -> None:
    from lora_rlhf.inspection.inspect import inspect

    inspect(config)


def _train(stage: Stage, config: TrainingConfig) -> None:
    stage.train(config)
    elsewhere = f" --sft {config.sft}" if isinstance(config, RewardConfig) and config.sft else ""
    _print_next(stage.next_command.format(run=config.run) + elsewhere)


def _sample(config: SampleConfig) -> None:
    api.sample(config)
    if config.best_of is None:
        _print_next(f"demo --run {config.run}", "people rank them in the browser, under Label")


def _label(config: JudgeLabelConfig) -> None:
    from lora_rlhf.stages.label import label as label_by_judge

    report = label_by_judge(config)
    about = report["judge"]
    print(f"rankings: {config.to}, by {about['model']}: {report['labeled']} of {report['prompts']} prompts")
    _print_failed(report)
    if (share := about.get("inconsistent_share")) is not None:
        print(f"pairs whose verdict changed with the order: {100 * share:.1f} %")
    _print_spent(about)
    if agreement := report.get("agreement"):
        rate, kappa, alpha = (agreement[name] for name in ("rate", "kappa", "alpha"))
        percent = "no pair" if rate is None else f"{100 * rate:.1f} %"
        kappa, alpha = ("none" if value is None else f"{value:.3f}" for value in (kappa, alpha))
        print(
            f"agrees with people on {percent} of {agreement['strict_pairs']} pairs that neither calls a tie; with ties "
            f"({agreement['pairs']} pairs): kappa {kappa}, Krippendorff's alpha {alpha}"
        )


def _print_failed(report: dict[str, Any]) -> None:
    if report["failed"]:
        faults = ", ".join(f"{fault}: {count}" for fault, count in report["judge"]["faults"].items())
        print(f"left out, since the model failed on them: {report['failed']} ({faults})")


def _print_spent(about: dict[str, Any]) -> None:
    cost = "" if about["cost"] is None else f", cost {about['cost']:.4f}"
    print(f"calls: {about['calls']:,}, tokens: {about['tokens_in']:,} in, {about['tokens_out']:,} out{cost}")


def _revise(config: ReviseConfig) -> None:
    from lora_rlhf.stages.revise import beside, revise

    report = revise(config)
    about = report["judge"]
    print(
        f"demonstrations: {config.to}, revised by {about['model']}: {report['revised']} of {report['prompts']} prompts"
    )
    _print_failed(report)
    print(
        f"answers that no round changed: {report['unchanged']}; rankings of the others: {beside(config.to, 'rankings')}"
    )
    print(f"every critique and revision, to be read: {beside(config.to, 'steps')}")
    _print_spent(about)


def _print_next(command: str, meaning: str = "") -> None:
    """Names the command that usually follows, as the shell finds it."""
    if workers.is_main():
        print(f"next: {program()} {command}{meaning and f'   # {meaning}'}")


def _evaluate(config: EvaluateConfig) -> None:
    from lora_rlhf.evaluation.markdown import terminal_tables
    from lora_rlhf.runs.folder import has_stage

    report = api.evaluate(config)
    if workers.is_main():
        print(f"{terminal_tables(report)}\n\nreport: {Path(config.folder) / 'report.html'}")
        for stage in reversed(WRITERS):
            if has_stage(config.run, stage.name):
                _print_next(f"export {config.run} --role {stage.role} --to {config.run}/export")
                break


def _gate(config: GateConfig) -> None:
    from lora_rlhf.release.gate import gate

    decision = gate(config)
    print(f"{decision.text}\nrecord: {decision.record}")
    if not decision.is_passed:
        raise SystemExit(1)


def _promote(config: PromoteConfig) -> None:
    from lora_rlhf.release.pointer import promote

    print(promote(config))


def _rollback(config: RollbackConfig) -> None:
    from lora_rlhf.release.pointer import rollback

    print(rollback(config))


def _package(config: PackageConfig) -> None:
    from lora_rlhf.release.package import package

    is_sound, text = package(config)
    print(text)
    if not is_sound:
        raise SystemExit(1)


def _export(config: ExportConfig) -> None:
    if config.verify:
        from lora_rlhf.exporting.verify import verify_export

        for name, value in verify_export(config).items():
            print(f"{name:<18} {value:.6g}")
        return
    from lora_rlhf.exporting.parity_table import parity_table

    print(parity_table(api.export(config)["parity"]))
    print(f"export: {config.to}")
    if config.form == "merged" and not BY_ROLE[config.role].scores:
        _print_next(f"chat {config.to}")


def _chat(config: ChatConfig) -> None:
    from lora_rlhf.chat.terminal import chat

    chat(config)


def _run(config: RecipeConfig) -> None:
    run_recipe(config.config, config.overrides)
    if workers.is_main():
        print(next_steps_text(read_recipe(config.config, config.overrides), has_demo="demo" in COMMANDS))


def _round(config: RoundConfig) -> None:
    record = run_round(config)
    if workers.is_main():
        print(terminal_table(*rounds_rows(Path(config.folder))))
    if record["gate"] != "pass":
        raise SystemExit(1)


def _rounds(config: RoundsConfig) -> None:
    records = read_rounds(Path(config.folder))
    print(json.dumps(records, indent=2) if config.json else terminal_table(*rounds_rows(Path(config.folder))))


def _demo(config: DemoConfig) -> None:
    try:
        from lora_rlhf_demo.app import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise UserError('the app needs Gradio; `pip install "gradio>=6.31,<7"` installs it') from error
    serve(config)


def _make(config: TinyworldConfig | ProblemsConfig | TracesConfig | WorkedConfig) -> None:
    if isinstance(config, TinyworldConfig):
        counts = make(config)
    elif isinstance(config, WorkedConfig):
        counts = make_worked_sums(config)
    else:
        counts = make_problems(config) if isinstance(config, ProblemsConfig) else make_traces(config)
    for name, count in counts.items():
        print(f"{config.path_by_set[name]}: {count} rows")


def _simulate_labelers(config: LabelConfig) -> None:
    measured = label(config)
    print(f"rankings: {config.to}")
    if measured is not None and measured.rate is not None:
        print(f"labelers agree on {100 * measured.rate:.1f} % of {measured.num_pairs} pairs: {config.agreement_to}")


def _score(config: ScoreConfig) -> None:
    request = find_request(config.prompt)
    assert request is not None  # else the configuration was at fault
    gold = score_request(request, config.response)
    for name, quality in vars(gold).items():
        print(f"{name:<10} {quality:.2f}")
    print(f"{'total':<10} {gold.total:.2f}")


@dataclass(frozen=True)
class Command:
    """What a command does in a few words, what it is configured by and what it calls."""

    summary: str
    kind: type[Any]
    call: Callable[[Any], Any]


TRAINING = {stage.name: Command(stage.summary, stage.config, functools.partial(_train, stage)) for stage in STAGES}

COMMANDS = {
    "doctor": Command("what this machine can run, and what to fix", DoctorConfig, _doctor),
    "plan": Command(
        "memory and time of each stage from a model's config alone, and the flags to use", PlanConfig, _plan
    ),
    "data check": Command(
        "what is in data files: formats, refusals, duplicates, leakage, lengths", CheckConfig, _check
    ),
    "data convert": Command(
        "rankings of any format into this project's, Argilla's or Label Studio's", ConvertConfig, _convert
    ),
    "inspect": Command("the exact tokens that a trainer sees of a file, marked by role", InspectConfig, _inspect),
    SFT.name: TRAINING[SFT.name],
    "sample": Command("K responses per prompt from a stage, ready to be ranked", SampleConfig, _sample),
    "label": Command("rankings of sampled responses by a judge, under written principles", JudgeLabelConfig, _label),
    "revise": Command("demonstrations by critique and revision under written principles", ReviseConfig, _revise),
    **TRAINING,  # the first one keeps its place above
    "evaluate": Command("one report over the stages of runs, on held-out prompts", EvaluateConfig, _evaluate),
    "export": Command("a trained role as a plain model, an adapter or a GGUF file", ExportConfig, _export),
    "chat": Command("talk to a run's model or an exported one in the terminal", ChatConfig, _chat),
    "gate": Command(
        "whether a candidate may replace a baseline: exit status 0 only if all rules pass", GateConfig, _gate
    ),
    "promote": Command("make a pointer lead to an export that a gate let pass", PromoteConfig, _promote),
    "rollback": Command("make a pointer lead to the export before", RollbackConfig, _rollback),
    "package": Command("all that others need to repeat and judge a run, in one file", PackageConfig, _package),
    "round": Command(
        "one more round: sample, choose, label, reward model, policy, evaluation, gate", RoundConfig, _round
    ),
    "rounds": Command("the rounds of a run as a table", RoundsConfig, _rounds),
    "run": Command("all stages of a recipe; goes on where it stopped", RecipeConfig, _run),
    "demo": Command("the browser app: compare stages, rank, watch a run", DemoConfig, _demo),
    "tinyworld make": Command("demonstrations and prompts of the tiny world", TinyworldConfig, _make),
    "tinyworld problems": Command("problems whose answers code can check", ProblemsConfig, _make),
    "tinyworld traces": Command("tool calls, given texts and secrets, with their truth", TracesConfig, _make),
    "tinyworld worked": Command("sums worked out in steps, each with an exact label", WorkedConfig, _make),
    "tinyworld label": Command("rankings by simulated labelers", LabelConfig, _simulate_labelers),
    "tinyworld score": Command("how good a response is by the hidden gold score", ScoreConfig, _score),
}
