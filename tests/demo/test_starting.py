"""Runs that are started from the page: the command line's own faults, one at a time, and no app's death loses one."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lora_rlhf_demo import starting
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.peak import plan_words
from lora_rlhf_demo.start_tab import form_value
from lora_rlhf_demo.starting import Starter, command_text, words_of_form

from lora_rlhf.cli.main import main
from lora_rlhf.configs.catalogue import BY_NAME, DPO, PPO, REWARD, SFT, STAGES, Stage
from lora_rlhf.configs.flags import parse_flags
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.configs.values import check
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.system.errors import UserError
from tests.demo.test_watching import BASE

WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("begun", flush=True)
time.sleep(60)
"""


def texts(root: Path, **changes: str) -> dict[str, str]:
    return {"run": str(root / "mine"), "model": "m", "demonstrations": "d.jsonl"} | changes


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is a process that waits for SIGTERM."""
    monkeypatch.setattr(starting, "COMMAND", [sys.executable, "-c", WAITS])


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    opened = Starter(tmp_path / "runs")
    yield opened
    with contextlib.suppress(UserError):
        opened.stop()
    if opened._child is not None:
        opened._child.wait()


@pytest.mark.parametrize("stage", STAGES)
def test_the_form_has_every_field_of_the_stage_once_under_the_headings_of_help(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = form_value(stage, {"run": "runs/mine", "unknown": "x"})["groups"]
    names = [field["name"] for _, fields in groups for field in fields]
    assert sorted(names) == sorted(stage.config.__dataclass_fields__)
    with pytest.raises(SystemExit):
        main([stage.name, "--help"])
    shown = capsys.readouterr().out
    headings = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert [title for title, _ in groups] == [heading for heading in headings if heading != "options"]
    assert all(field["text"] for _, fields in groups for field in fields)


def test_a_form_is_the_command_line_that_it_shows(tmp_path: Path) -> None:
    given = texts(
        tmp_path, lora_targets="q_proj 'v proj'", overwrite="true", learning_rate="-3", template_args="--help"
    )
    words = words_of_form(SFT, given | {"device": "  ", "unknown": "x"})
    config = parse_flags("sft", SFTConfig, words)
    assert (config.lora_targets, config.overwrite, config.learning_rate) == (("q_proj", "v proj"), True, -3.0)
    assert config.template_args == ("--help",) and config.device == "auto"
    assert command_text(SFT, {"run": "runs/a b"}) == "lora-rlhf sft --run 'runs/a b'"


def test_faults_are_those_of_the_command_line(
    tmp_path: Path, starter: Starter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = ({"run": "x"}, texts(tmp_path, epochs="2x"), texts(tmp_path, epochs="0", lora_dropout="2"))
    for given in forms:
        assert main(["sft", *words_of_form(SFT, given)]) == 2
        with pytest.raises(UserError) as caught:
            starter.read(SFT, given)
        assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_a_folder_in_use_is_refused_in_the_words_of_the_stage(tmp_path: Path, starter: Starter, waiting: None) -> None:
    begun = starter.read(SFT, texts(starter.root))
    with StageFolder.open(begun, "sft") as folder:
        folder.begin(BASE, {}, {})
        with pytest.raises(UserError, match="another process is at work there"):
            starter.start(SFT, texts(starter.root))
        (folder.path / "checkpoints" / "step-1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"(?s)an unfinished run of other settings.*epochs: 2 then, 5 now"):
        starter.start(SFT, texts(starter.root, epochs="5"))
    with StageFolder.open(begun, "sft") as folder:
        folder.begin(BASE, {}, {})
        folder.finish({})
    with pytest.raises(UserError, match="finished already; use --overwrite"):
        starter.start(SFT, texts(starter.root))
    assert starter.last() is None


def test_the_page_starts_runs_under_its_root_alone_and_no_code(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    careful, trusting = Starter(root), Starter(root, may_run_code=True)
    for place in (tmp_path / "elsewhere", root, root / "a" / "b", root / ".." / "x"):
        with pytest.raises(UserError, match="starts runs in"):
            trusting.read(SFT, texts(root, run=str(place)))
    ppo = {"run": str(root / "mine"), "prompts": "p.jsonl"}
    for change in ({"reward_functions": "os:system"}, {"trust_remote_code": "true"}, {"judge_key_variable": "HOME"}):
        with pytest.raises(UserError, match=f"{next(iter(change))} may run code, or send data"):
            careful.read(PPO, ppo | change)
        trusting.read(PPO, ppo | change)


def test_one_run_at_a_time_which_outlives_its_app_and_goes_on(starter: Starter, waiting: None) -> None:
    root = starter.root
    starter.start(SFT, texts(root, overwrite="true"))
    other_page = Starter(root)  # of another app on this root, or of this one after its death
    with pytest.raises(UserError, match="sft of mine is at work; one run is trained at a time"):
        other_page.start(SFT, texts(root, run=str(root / "other")))
    found = other_page.last()
    assert found is not None and (found.stage, found.run, found.is_alive) == (SFT, "mine", True)
    wait_until(lambda: other_page.log_lines() == ["begun"])
    assert found.pid is not None and os.getsid(found.pid) == found.pid  # no Ctrl-C in the app's terminal reaches it
    with pytest.raises(UserError, match="no run waits"):
        other_page.resume()

    other_page.stop()
    wait_until(lambda: not (starter.last() or found).is_alive)
    with pytest.raises(UserError, match="no run that was started here is at work"):
        other_page.stop()
    stopped = other_page.last()
    assert stopped is not None and stopped.can_continue
    starter.resume()
    again = starter.last()
    assert again is not None and again.is_alive and again.pid != found.pid
    assert again.texts == texts(root)  # without --overwrite


def test_a_record_that_somebody_wrote_kills_nobody(tmp_path: Path) -> None:
    starter = Starter(tmp_path)
    for record in (
        f'{{"stage": "sft", "run": "../x", "texts": {{}}, "pid": {os.getpid()}}}',
        "[]",
        '{"stage": "rm"}',
        "{",
    ):
        (tmp_path / starting.RECORD).write_text(record)
        with pytest.raises(UserError):
            starter.stop()


def test_only_this_machine_may_start_runs_unless_asked_for(tmp_path: Path) -> None:
    assert DemoConfig().may_start and not DemoConfig(allow_start=False).may_start
    for reachable in (DemoConfig(host="0.0.0.0"), DemoConfig(share=True), DemoConfig(host_names=("proxy.test",))):
        assert not reachable.may_start
    assert DemoConfig(host="0.0.0.0", allow_start=True).may_start


def test_a_plan_is_asked_for_with_the_settings_of_the_form_and_of_its_base(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    sft = parse_flags("sft", SFT.config, words_of_form(SFT, texts(tmp_path, lora_rank="4", batch_size="24")))
    words = plan_words(SFT, sft, on_gpu=True)
    plan = parse_flags("plan", PlanConfig, words)
    check(plan)
    assert (plan.model, plan.stage, plan.lora_rank, plan.device, plan.batch_size) == ("m", "sft", 4, "cuda", 64)
    ppo = parse_flags("ppo", PPO.config, ["--run", str(run), "--prompts", "p", "--batch_size", "32"])
    with pytest.raises(UserError, match="names the base"):
        plan_words(PPO, ppo, on_gpu=True)
    with StageFolder.open(sft, "sft") as folder:
        folder.begin(BASE, {}, {})
    plan = parse_flags("plan", PlanConfig, plan_words(PPO, ppo, on_gpu=False))
    check(plan)
    assert (plan.model, plan.lora_rank, plan.batch_size, plan.device) == ("m", 4, 32, "cpu")
    reward = parse_flags("reward", REWARD.config, ["--run", str(run), "--rankings", "r"])
    assert parse_flags("plan", PlanConfig, plan_words(REWARD, reward, on_gpu=True)).stage == "reward"
    dpo = parse_flags("dpo", DPO.config, ["--run", str(run), "--rankings", "r", "--batch_size", "8"])
    plan = parse_flags("plan", PlanConfig, plan_words(DPO, dpo, on_gpu=True))
    check(plan)
    assert plan.minibatch_size == 16, "two answers to each prompt"
    assert set(BY_NAME) == {stage.name for stage in STAGES}
