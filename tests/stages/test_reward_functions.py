"""PPO with reward functions: rows with an answer train by one flag, and functions that misbehave do not end a run."""

from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.cli.main import main
from tests.support.stages import manifest, rows_of, write_rows

AFTER = {"three": ("Four", 4), "seven": ("Eight", 8), "eleven": ("Twelve", 12)}
QUESTIONS = {word: f"What number comes after {word}?" for word in AFTER}
GSM8K = [{"question": QUESTIONS[word], "answer": f"It is {next}.\n#### {n}"} for word, (next, n) in AFTER.items()]
GUESSES = [
    {"prompt": question, "completion": f"{next}."} for question in QUESTIONS.values() for next, _ in AFTER.values()
]
COMMON = "--max_prompt_tokens 24 --max_response_tokens 8 --device cpu"


@pytest.fixture(scope="module")
def guesser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows as in GSM8K, and a run whose SFT stage of the tiny world learned to guess their answers."""
    folder = tmp_path_factory.mktemp("guesser")
    write_rows(folder / "gsm8k.jsonl", GSM8K)
    rows = write_rows(folder / "guesses.jsonl", GUESSES)
    sft = f"sft --run {folder}/run --model tinyworld --demonstrations {rows} --validation_fraction 0 --epochs 20"
    assert main(f"{sft} --batch_size 9 --learning_rate 5e-3 {COMMON}".split()) == 0
    return folder


def column(run: Path, key: str) -> list[Any]:
    return [row.get(key) for row in rows_of(run, "ppo")]


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["gae", pytest.param("grpo", marks=pytest.mark.long)])
def test_rows_as_in_gsm8k_train_by_one_flag(guesser: Path, tmp_path: Path, advantage: str) -> None:
    rows, function = f"--prompts {guesser}/gsm8k.jsonl", "--reward_functions numeric_answer"
    command = f"ppo --run {tmp_path} --sft {guesser}/run/sft {rows} {function}"
    speed = "--iterations 12 --batch_size 64 --minibatch_size 32 --policy_learning_rate 1e-3 --warmup_iterations 0"
    advantage = f"--advantage {advantage} --samples_per_prompt 4"
    assert main(f"{command} {speed} {advantage} {COMMON}".split()) == 0
    accuracy = column(tmp_path, "reward/numeric_answer")
    assert sum(accuracy[-3:]) / 3 > accuracy[0] + 0.15
    assert column(tmp_path, "reward/numeric_answer_failed") == [0.0] * 12
    assert manifest(tmp_path, "ppo")["parents"].keys() == {"sft"}


def run_once(guesser: Path, run: Path, prompts: str, *flags: str) -> dict[str, Any]:
    """One iteration of 12 responses; returns its metrics."""
    words = f"ppo --run {run} --sft {guesser}/run/sft --prompts {prompts} --iterations 1"
    more = (
        f"--batch_size 12 --minibatch_size 12 --samples_per_prompt 2 --missing_eos_score null --num_epochs 1 {COMMON}"
    )
    assert main([*words.split(), *more.split(), *flags]) == 0
    assert manifest(run, "ppo")["status"] == "finished"
    return rows_of(run, "ppo")[0]


@pytest.mark.slow
def test_functions_that_misbehave_do_not_end_a_run(
    guesser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on the responses that begin with Four or Eight, and none on Twelve, whose score is 1."""
    monkeypatch.setenv("OUTSIDE", str(tmp_path / "outside"))
    names = ("fail", "allocate", "leave", "partly_nan", "hang", "write_outside")
    functions = [f"tests.support.bad_rewards:{name}" for name in names]
    limits = ("--reward_timeout_s", "2", "--reward_failure_score", "-5", "--reward_memory_gib", "1")
    row = run_once(guesser, tmp_path, f"{guesser}/gsm8k.jsonl", *limits, "--reward_functions", *functions)
    bad = row["reward/fail_failed"]
    assert 0 < bad < 12
    assert {row[f"reward/{name}_failed"] for name in names[:4]} == {bad}
    assert row["reward/fail"] == pytest.approx(1 - 6 * bad / 12)
    assert row["reward/partly_nan"] == -5.0  # it says nothing of the others
    assert row["reward/hang_failed"] >= bad
    assert row["reward/write_outside"] in (0.0, -5.0), "code that writes outside fails, or is refused on this system"
    assert not (tmp_path / "outside").exists()


def test_scores_are_added_up_with_their_weights(guesser: Path, tmp_path: Path) -> None:
    functions = ("numeric_answer=2", "length_window(most=0)=4", "regex(pattern='[.]$')=-0.5")
    row = run_once(guesser, tmp_path, f"{guesser}/gsm8k.jsonl", "--reward_functions", *functions)
    assert row["reward/numeric_answer"] > 0 and row["reward/regex"] > 0
    assert row["rollout/score"] == pytest.approx(
        2 * row["reward/numeric_answer"] + 4 * row["reward/length_window"] - 0.5 * row["reward/regex"]
    )


@pytest.mark.slow
def test_rows_with_tests_of_code_train_by_one_flag(guesser: Path, tmp_path: Path) -> None:
    """The answers Four., Eight. and Twelve. are no Python, so only tests that need no answer could pass."""
    rows = [{"prompt": question, "tests": ["assert f() == 4"]} for question in QUESTIONS.values()]
    prompts = write_rows(tmp_path / "code.jsonl", rows)
    row = run_once(guesser, tmp_path / "run", prompts, "--reward_functions", "code_tests", "numeric_answer(answer=4)")
    assert (row["reward/code_tests"], row["reward/code_tests_failed"]) == (0.0, 0.0)
    assert row["reward/numeric_answer"] > 0


def test_a_column_that_is_not_there_is_named(guesser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"ppo --run {tmp_path}/run --sft {guesser}/run/sft --prompts {guesser}/gsm8k.jsonl {COMMON}".split()
    assert main([*words, "--reward_functions", "regex"]) == 2
    assert "'regex' needs the column 'pattern', which the prompts lack; their other columns are: answer" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
