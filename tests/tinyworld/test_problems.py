"""The corner of problems: rows that the built-in reward functions check, and training without a reward model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.cli.main import main
from lora_rlhf.rewards.builtin import length_window, numeric_answer, regex
from lora_rlhf.tinyworld.config import ProblemsConfig
from lora_rlhf.tinyworld.problems import make_problems
from tests.support.stages import rows_of

SIZES = {"demonstrations": 150, "prompts": 200, "held_out": 100}
NUMBERS = "zero one two three four five six seven eight nine ten".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problems")
    words = " ".join(f"--num_{name} {count}" for name, count in SIZES.items())
    assert main(f"tinyworld problems --to {folder}/data {words}".split()) == 0
    return folder


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def numbers(question: str) -> tuple[int, ...]:
    """The numbers of a sum, without that of a limit, read from its text alone."""
    asked = question.partition("?")[0].lower()
    return tuple(NUMBERS.index(word) for word in re.findall(r"[a-z]+", asked) if word in NUMBERS)


def test_the_rows_hold_the_right_answer_and_the_limit(folder: Path) -> None:
    rows = [*read(folder, "prompts"), *read(folder, "held_out")]
    assert {name: len(read(folder, name)) for name in SIZES} == SIZES
    limits = [0, 0]
    for row in rows:
        first, second = numbers(row["question"])
        assert row["answer"].partition("#### ")[2] == str(first + second)
        assert numeric_answer(row["answer"].partition("\n")[0], str(first + second)) == 1
        assert ("most" in row) == ("Use at most eight words." in row["question"])
        words = row["question"].partition("End with: ")[2]
        assert ("pattern" in row) == bool(words)
        if words:
            assert regex(f"Five. {words}", row["pattern"]) > regex(f"{words} Five.", row["pattern"])
        limits = [limits[0] + ("most" in row), limits[1] + ("pattern" in row)]
    assert min(limits) > len(rows) / 5


def test_held_out_problems_are_of_other_numbers_and_nothing_is_twice(folder: Path) -> None:
    texts = {name: [row.get("question") or row["prompt"] for row in read(folder, name)] for name in SIZES}
    pairs = {name: set(map(numbers, rows)) for name, rows in texts.items()}
    assert not pairs["held_out"] & (pairs["prompts"] | pairs["demonstrations"])
    everything = [text for rows in texts.values() for text in rows]
    assert len(set(everything)) == len(everything)
    assert not any(character.isdigit() for text in everything for character in text)


def test_most_demonstrations_are_wrong_or_too_long(folder: Path) -> None:
    rows = read(folder, "demonstrations")
    right = [numeric_answer(row["completion"], str(sum(numbers(row["prompt"])))) for row in rows]
    limited = [row for row in rows if "Use at most" in row["prompt"]]
    short = [length_window(row["completion"], 8) for row in limited]
    assert 0.1 < sum(right) / len(right) < 0.4 and 0.1 < sum(short) / len(short) < 0.7


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        sizes = {f"num_{name}": 20 for name in SIZES}
        make_problems(ProblemsConfig(to=str(tmp_path / name), seed=seed, **sizes))
    for name in SIZES:
        first, again, other = ((tmp_path / run / f"{name}.jsonl").read_bytes() for run in ("first", "again", "other"))
        assert first == again != other


def test_faults_name_the_value_and_the_bound() -> None:
    faults = ProblemsConfig(to="", num_prompts=0).faults()
    assert faults == ["to is empty; name a folder", "num_prompts is 0, must be from 1 to 100000"]


@pytest.mark.slow
@pytest.mark.long
def test_the_checks_teach_what_the_demonstrations_did_not(folder: Path) -> None:
    """A small form of benchmarks/verifiable.py: both checks rise on prompts of training, with no reward model."""
    common = "--max_prompt_tokens 64 --max_response_tokens 32 --micro_batch_size 64 --device cpu"
    data, run = folder / "data", folder / "run"
    sft = f"sft --run {run} --model tinyworld --demonstrations {data}/demonstrations.jsonl --validation_fraction 0"
    assert main(f"{sft} --epochs 4 --batch_size 16 --learning_rate 2e-3 {common}".split()) == 0
    ppo = f"ppo --run {run} --prompts {data}/prompts.jsonl --reward_functions numeric_answer length_window regex"
    sizes = "--iterations 10 --batch_size 64 --minibatch_size 32 --num_epochs 1 --warmup_iterations 0 --engine static"
    grpo = "--advantage grpo --samples_per_prompt 8 --policy_learning_rate 2e-3 --kl_coef 0.02"
    assert main(f"{ppo} {sizes} {grpo} {common}".split()) == 0
    rows = rows_of(run, "ppo")
    for check in ("numeric_answer", "regex"):
        shares = [row[f"reward/{check}"] for row in rows if f"reward/{check}" in row]
        assert sum(shares[-3:]) / 3 > shares[0] + 0.2, (check, shares)
