"""The command line as a person uses it: exit status, and one clear message in place of a traceback."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_rlhf.cli.commands import COMMANDS, Command
from lora_rlhf.cli.main import OTHER_NAMES, main, parse
from lora_rlhf.configs.stages import PPOConfig, SFTConfig
from lora_rlhf.inspection.config import CheckConfig, InspectConfig
from lora_rlhf.system.errors import UserError

Capture = pytest.CaptureFixture[str]
SFT = ["--run", "runs/x", "--model", "tinyworld", "--demonstrations", "d.jsonl"]


def fails(capsys: Capture, *arguments: str) -> str:
    """The message of a command that must end with status 2, without a traceback."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


def test_the_command_that_follows_a_reward_model_names_its_sft_stage(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_rlhf.stages.reward.train", lambda config, model: None)
    for sft, added in (([], ""), (["--sft", "runs/y/sft"], " --sft runs/y/sft")):
        assert main(["reward", "--run", "runs/x", "--rankings", "r.jsonl", *sft]) == 0
        assert capsys.readouterr().out.endswith(f"ppo --run runs/x --prompts PROMPTS.jsonl --kl_target 6{added}\n")


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """raising(exception): from now on the sft command raises it."""

    def replace(exception: BaseException) -> None:
        def call(config: SFTConfig) -> None:
            raise exception

        monkeypatch.setitem(COMMANDS, "sft", Command("", SFTConfig, call))

    return replace


def test_unknown_flag_names_it_and_the_nearest(capsys: Capture) -> None:
    message = fails(capsys, "sft", *SFT, "--lerning-rate", "1e-4")
    assert "unknown flag --lerning-rate; did you mean --learning_rate?" in message


def test_unknown_flag_without_a_likeness(capsys: Capture) -> None:
    message = fails(capsys, "sft", *SFT, "--zzz", "1")
    assert "--zzz" in message and "did you mean" not in message


def test_flags_are_not_abbreviated(capsys: Capture) -> None:
    assert "unknown flag --learning" in fails(capsys, "sft", *SFT, "--learning", "1e-4")


def test_unknown_command_names_the_nearest(capsys: Capture) -> None:
    assert "unknown command 'rewards'; did you mean reward?" in fails(capsys, "rewards", "--run", "x")


@pytest.mark.parametrize(
    ("words", "unknown", "meant"),
    [
        (["trian"], "trian", OTHER_NAMES["train"]),
        (["data", "chek", "d.jsonl"], "data chek", "data check"),
        (["check", "d.jsonl"], "check", "data check"),
        (["inspct", "d.jsonl"], "inspct", "inspect"),
        (["tinywrld", "make"], "tinywrld", "tinyworld make"),
    ],
)
def test_misspelled_commands(words: list[str], unknown: str, meant: str, capsys: Capture) -> None:
    assert f"unknown command {unknown!r}; did you mean {meant}?" in fails(capsys, *words)


def test_a_command_that_is_like_no_other(capsys: Capture) -> None:
    message = fails(capsys, "zzz", "x")
    assert "unknown command 'zzz' (" in message and "did you mean" not in message


def test_words_before_the_first_flag_are_the_files() -> None:
    config = parse("data check", ["a.jsonl", "owner/name:split", "--held-out", "b.jsonl", "c.jsonl", "--json"])
    assert config == CheckConfig(files=("a.jsonl", "owner/name:split"), held_out=("b.jsonl", "c.jsonl"), json=True)
    assert parse("inspect", ["a.jsonl", "--stage", "ppo"]) == InspectConfig(file="a.jsonl", stage="ppo")


@pytest.mark.parametrize("name", ["1.5", "null", "true", "a: b", "[ab]*.jsonl", "a, b", 'quote"d', "2024-01-01", "é"])
def test_any_name_of_a_file_stays_text(name: str) -> None:
    assert parse("data check", [name, "--held-out", name]) == CheckConfig(files=(name,), held_out=(name,))
    assert parse("data check", [name, "b", f"--held-out={name}"]) == CheckConfig(files=(name, "b"), held_out=(name,))
    assert parse("inspect", [name, "--stage", "sft"]) == InspectConfig(file=name, stage="sft")


def test_lists_may_be_written_as_yaml() -> None:
    config = parse("data check", ["--files", "[a.jsonl, b.jsonl]", '--held-out=["c d"]'])
    assert config == CheckConfig(files=("a.jsonl", "b.jsonl"), held_out=("c d",))


def test_lists_of_numbers() -> None:
    flags = ["--run", "r", "--prompts", "p"]
    for given in (["--temperatures", "0", "0.5"], ["--temperatures", "[0, 0.5]"], ["--temperatures=0", "0.5"]):
        assert parse("evaluate", [*given, *flags]).temperatures == (0.0, 0.5)
    with pytest.raises(UserError, match="temperatures is 'warm', expected one or more numbers"):
        parse("evaluate", [*flags, "--temperatures", "0.5", "warm"])


def test_files_from_a_file_of_flags(tmp_path: Path) -> None:
    path = tmp_path / "check.yaml"
    path.write_text("files: [a.jsonl]\nheld_out: [b.jsonl]\n")
    assert parse("data check", ["--config", str(path)]) == CheckConfig(files=("a.jsonl",), held_out=("b.jsonl",))
    assert parse("data check", ["c.jsonl", "--config", str(path)]).files == ("c.jsonl",)


def test_words_that_are_no_file(capsys: Capture) -> None:
    assert "data check: FILE... must be given" in fails(capsys, "data", "check", "--json")
    assert "inspect: FILE and --stage must be given" in fails(capsys, "inspect")
    assert "inspect: unknown argument b.jsonl" in fails(capsys, "inspect", "a.jsonl", "b.jsonl", "--stage", "sft")
    assert "sft: unknown argument d.jsonl" in fails(capsys, "sft", "d.jsonl", *SFT)
    assert "data check: unknown argument b.jsonl" in fails(capsys, "data", "check", "a", "--token-rows", "9", "b.jsonl")
    assert "FILE is given twice" in fails(capsys, "inspect", "a.jsonl", "--file", "b.jsonl", "--stage", "sft")
    assert "FILE... is given twice" in fails(capsys, "data", "check", "a.jsonl", "--files=b.jsonl")


def test_help_shows_where_files_stand(capsys: Capture) -> None:
    for command, usage in (
        ("inspect", "inspect FILE [flags]"),
        ("data check", "data check FILE... [flags]"),
        ("evaluate", "evaluate RUN... [flags]"),
    ):
        for flag in ("-h", "--help"):
            with pytest.raises(SystemExit):
                main([*command.split(), flag])
            assert f"usage: lora-rlhf {usage}" in capsys.readouterr().out


def test_missing_flags_are_all_named(capsys: Capture) -> None:
    assert "--model and --demonstrations must be given" in fails(capsys, "sft", "--run", "x")


def test_a_value_of_the_wrong_type(capsys: Capture) -> None:
    assert "epochs is 'two', expected a whole number" in fails(capsys, "sft", *SFT, "--epochs", "two")
    assert "expected one of nf4, int8, none" in fails(capsys, "sft", *SFT, "--quantization", "4bit")


def test_missing_parent_run(capsys: Capture, tmp_path: Path) -> None:
    message = fails(capsys, "reward", "--run", str(tmp_path), "--rankings", "r.jsonl")
    assert f"run `lora-rlhf sft --run {tmp_path}` first" in message


def test_batch_size_that_does_not_divide(capsys: Capture) -> None:
    ppo = ("ppo", "--run", "r", "--prompts", "p", "--iterations", "0")
    message = fails(capsys, *ppo, "--batch-size", "50", "--minibatch-size", "8")
    assert "batch_size is 50, must be a multiple of minibatch_size 8: try 48 or 56" in message
    assert "iterations is 0" in message, "all faults at once"


def test_empty_file(capsys: Capture, tmp_path: Path) -> None:
    empty = tmp_path / "demonstrations.jsonl"
    empty.touch()
    message = fails(capsys, "sft", "--run", str(tmp_path / "x"), "--model", "tinyworld", "--demonstrations", str(empty))
    assert f"{empty}: no rows; the file is empty" in message
    assert not (tmp_path / "x").exists(), "nothing was begun"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError):
        main(["sft", *SFT, "--epochs", "0", "--debug"])


def test_dashes_and_underscores_are_the_same() -> None:
    dashes = parse("sft", [*SFT, "--micro-batch-size=4", "--learning-rate", "1e-3"])
    assert dashes == parse("sft", [*SFT, "--micro_batch_size", "4", "--learning_rate=1e-3"])
    assert dashes.micro_batch_size == 4 and dashes.learning_rate == 1e-3


def test_values_may_begin_with_a_dash() -> None:
    flags = ["--run", "r", "--prompts", "p", "--missing-eos-score", "-1e-3"]
    assert parse("ppo", flags).missing_eos_score == -1e-3
    assert parse("chat", ["runs/x", "--system", "-be nice"]).system == "-be nice"


def test_former_flags_work_and_say_their_new_names(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text("rollout: plain\nrun: r\nprompts: p\n")
    assert parse("ppo", ["--config", str(path)]).engine == "plain"
    assert parse("ppo", ["--config", str(path), "--engine", "static"]).engine == "static"
    assert parse("ppo", ["--run", "r", "--prompts", "p", "--rollout=static"]).engine == "static"
    assert parse("tinyworld label", ["--candidates", "c", "--to", "t"]).responses == "c"
    assert caplog.messages == [
        f"{path}: rollout is now called engine",
        f"{path}: rollout is now called engine",
        "ppo: rollout is now called engine",
        "tinyworld label: candidates is now called responses",
    ]


def test_null_is_no_value_where_there_may_be_none() -> None:
    flags = ["--run", "null", "--prompts", "p", "--kl-target", "null", "--reward-function", "null"]
    config = parse("ppo", flags)
    assert (config.run, config.kl_target, config.reward_function) == ("null", None, None)


def test_a_flag_without_its_value(capsys: Capture) -> None:
    assert "sft: --seed needs a value" in fails(capsys, "sft", *SFT, "--seed", "--epochs", "1")
    assert "data check: --held-out needs a value" in fails(capsys, "data", "check", "a.jsonl", "--held-out")


def test_faults_of_the_file_and_of_the_flags_come_together(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("epochs: many\nreport_to: wandb\n")
    message = fails(capsys, "sft", *SFT, "--config", str(path), "--seed", "x")
    assert message.splitlines() == [
        f"error: {path}: epochs is 'many', expected a whole number",
        f"{path}: report_to is 'wandb', expected one or more words",
        "sft: seed is 'x', expected a whole number",
    ]


def test_values_keep_their_dashes() -> None:
    assert parse("sft", ["--run", "my-run", "--model=a-b", "--demonstrations", "x-y.jsonl"]).model == "a-b"


def test_a_switch_needs_no_value() -> None:
    assert parse("sft", [*SFT, "--use-rslora", "--epochs", "3"]).use_rslora is True
    assert parse("sft", [*SFT, "--epochs", "3", "--use-rslora"]).use_rslora is True
    assert parse("sft", [*SFT, "--use-rslora", "false"]).use_rslora is False


@pytest.mark.parametrize("flag", ["--print_config", "--print-config"])
def test_print_config_fed_back_reproduces_the_configuration(flag: str, capsys: Capture, tmp_path: Path) -> None:
    arguments = ["--run", "r", "--prompts", "p.jsonl", "--policy_learning_rate", "3e-5", "--kl_target", "6"]
    with pytest.raises(SystemExit) as exited:
        main(["ppo", *arguments, flag])
    assert exited.value.code == 0
    path = tmp_path / "ppo.yaml"
    path.write_text(capsys.readouterr().out)
    expected = PPOConfig(run="r", prompts="p.jsonl", policy_learning_rate=3e-5, kl_target=6.0)
    assert parse("ppo", ["--config", str(path)]) == expected


def test_printed_defaults_are_a_file_to_fill_in(capsys: Capture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["sft", "--print_config"])
    path = tmp_path / "sft.yaml"
    text = capsys.readouterr().out
    assert "# model: required\n" in text
    path.write_text(text)
    assert parse("sft", ["--config", str(path), *SFT]) == parse("sft", SFT)


def test_flags_override_the_file_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("run: r\nmodel: m\ndemonstrations: d\nepochs: 7\nseed: 5\n")
    config, epochs = ["--config", str(path)], ["--epochs", "1"]
    for arguments in ([*config, *epochs], [f"--config={path}", *epochs], [*epochs, *config]):
        parsed = parse("sft", arguments)
        assert (parsed.epochs, parsed.seed, parsed.run) == (1, 5, "r")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("epoch: 3", "unknown key 'epoch'; did you mean epochs?"),
        ("epochs: many", "epochs is 'many', expected a whole number"),
        ("epochs: [", "not YAML"),
        ("- 3", "expected keys and values"),
    ],
)
def test_faults_of_a_file_name_the_file(text: str, fault: str, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(text)
    message = fails(capsys, "sft", *SFT, "--config", str(path))
    assert message.startswith(f"error: {path}: {fault}")


def test_help_shows_help_and_defaults(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["ppo", "--help"])
    assert exited.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--iterations ITERATIONS Rollout-and-update rounds. (type: int, default: 100)" in text
    assert "--seed SEED Seed of everything random in this stage. (type: int, default: 0)" in text, "inherited"
    assert "--advantage {gae,rloo,grpo,dr_grpo,reinforce} GAE with a value role" in text
    assert "--run RUN Run folder; the stage writes to a folder of its own inside. (type: str, required)" in text


def test_help_begins_with_what_must_be_given_and_what_is_most_used(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["ppo", "--help"])
    sections = re.split(r"\n(?=[a-z].*:\n)", capsys.readouterr().out.replace("KL:", "kl:"))
    flags = {section.partition(":")[0].strip(): re.findall(r"\n  --(\w+)", section) for section in sections}
    assert flags["most used"][:2] == ["run", "prompts"] and "kl_target" in flags["most used"]
    assert flags["kl"] == ["kl_horizon"] and "ptx_coef" in flags["pretraining term (PPO-ptx)"]
    assert "resume" in flags["training and checkpoints"] and "seed" in flags["data, memory and limits"]
    order = list(flags)
    assert order.index("most used") < order.index("kl") < order.index("training and checkpoints")


def test_every_flag_of_every_command_has_its_text(capsys: Capture) -> None:
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        assert capsys.readouterr().out.count("\n  --") >= len(dataclasses.fields(command.kind))


def test_overview_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main(["tinyworld"]) == 0
    text = capsys.readouterr().out
    assert "tinyworld make" in text and "ppo" not in text


def test_control_c_is_one_line(raising: Callable[[BaseException], None], capsys: Capture) -> None:
    raising(KeyboardInterrupt())
    assert main(["sft", *SFT]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_out_of_memory_names_the_way_out(raising: Callable[[BaseException], None], capsys: Capture) -> None:
    import torch

    raising(torch.cuda.OutOfMemoryError("tried to allocate 2 GiB"))
    assert main(["sft", *SFT]) == 1
    message = capsys.readouterr().err
    assert "micro_batch_size" in message and "gradient_checkpointing" in message and "2 GiB" in message


def test_a_full_disk_is_one_message_that_names_the_file(
    raising: Callable[[BaseException], None], capsys: Capture
) -> None:
    raising(OSError(28, "No space left on device", "runs/x/sft/metrics.jsonl"))
    assert main(["sft", *SFT]) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message and "runs/x/sft/metrics.jsonl" in message and "is kept" in message


def test_an_error_of_ours_is_not_hidden(raising: Callable[[BaseException], None]) -> None:
    raising(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["sft", *SFT])


def test_help_and_faults_import_nothing_heavy() -> None:
    code = (
        "import sys; from lora_rlhf.cli.main import main;"
        "main(['--help']); main(['sft', '--epochs', '0', *sys.argv[1:]]);"
        "print([name for name in ('torch', 'transformers', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *SFT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "epochs is 0" in done.stderr


def test_without_file_locks_one_line_names_wsl() -> None:
    """As on Windows, which has no fcntl."""
    code = "import sys; sys.modules['fcntl'] = None; from lora_rlhf.cli.main import main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: lora-rlhf needs Linux or macOS; on Windows, run it inside WSL2\n"


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "lora_rlhf.cli", "--help"]
    done = subprocess.run(["bash", "-c", '"$@" | true; echo "${PIPESTATUS[0]}"', "bash", *command], capture_output=True)
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_scripts_are_the_same_commands() -> None:
    scripts = Path(__file__).parents[2] / "scripts"
    for name in ("sft", "reward", "ppo"):
        script = [sys.executable, str(scripts / f"train_{name}.py"), "--zzz", "1"]
        done = subprocess.run(script, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {name}: unknown flag --zzz")


def test_run_overrides_reach_the_recipe(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"run": "a", "sft": {"model": "m", "demonstrations": "{run}/d.jsonl"}}))
    assert "b/d.jsonl: no such file" in fails(capsys, "run", "--config", str(path), "--run", "b")


def test_score_prints_every_quality(capsys: Capture) -> None:
    assert main(["tinyworld", "score", "--prompt", "What number comes after fourteen?", "--response", "Fifteen."]) == 0
    figures = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert set(figures) == {"asked", "true", "constraint", "point", "civil", "total"}
    assert "is not one of the tiny world" in fails(capsys, "tinyworld", "score", "--prompt", "Hm?", "--response", "x")


def test_the_first_run_is_the_one_and_the_others_are_others(capsys: Capture) -> None:
    assert (one := parse("evaluate", ["a", "--prompts", "p"])).run == "a" and one.other_runs == ()
    assert (two := parse("evaluate", ["a", "b", "c", "--prompts", "p"])).run == "a" and two.other_runs == ("b", "c")
    assert parse("evaluate", ["--run", "a", "--other-runs", "b", "--prompts", "p"]).other_runs == ("b",)
    assert "RUN is given twice" in fails(capsys, "evaluate", "a", "--run", "b", "--prompts", "p")
