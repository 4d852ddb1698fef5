"""A judge as the reward: its scores, its failures, a server that limits rates, talks nonsense, dies and comes back."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.cli.main import main
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges import endpoint
from lora_rlhf.judges.asking import Asker, Reply
from lora_rlhf.judges.cache import Cache
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import QuestionTemplate, RatingTemplate
from lora_rlhf.judges.rating import RatingJudge
from lora_rlhf.stages.judged import JudgedReward, NoJudgement
from tests.support.fake_api import Raw, longer_wins, says, serve, sides
from tests.support.stages import DEMONSTRATIONS, manifest, rows_of, write_rows

LIMITS = "--max_prompt_tokens 48 --max_response_tokens 24 --device cpu --engine plain"  # with 24 some end
SIZES = "--iterations 3 --batch_size 8 --minibatch_size 8 --samples_per_prompt 2 --save_every 100"
CHOICES = "--advantage rloo --missing_eos_score null"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def command(parents: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """command(run, url, *flags) -> ppo with a judge at that address as its only reward."""
    prompts = write_rows(tmp_path / "prompts.jsonl", DEMONSTRATIONS[:12])

    def make(run: str, url: str, *flags: str) -> list[str]:
        words = f"ppo --run {tmp_path / run} --sft {parents}/sft --prompts {prompts} {LIMITS} {SIZES} {CHOICES}"
        judge = f"--reward_judge endpoint --judge_model m --judge_url {url} --judge_cache {tmp_path}/{run}.cache"
        return [*words.split(), *judge.split(), "--judge_retries", "1", *flags]

    return make


def answer_in(question: str) -> str:
    found = re.search(r"===== answer (\w+)\n(.*?)\n===== end of answer \1\n", question, re.DOTALL)
    assert found, question
    return found[2]


def rating(text: str) -> int:
    return len(text) % 7 + 1


def rated(question: str) -> Raw:
    return says(f"It has some letters.\nScore: {rating(answer_in(question))}")


def adapter(tmp_path: Path, run: str) -> bytes:
    return (tmp_path / run / "ppo" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_scores_are_those_of_the_server_and_a_second_run_asks_nothing_again(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    with serve(rated) as api:
        assert main(command("run", api.url, "--sample_every", "100")) == 0
        rows, about = rows_of(tmp_path / "run", "ppo"), manifest(tmp_path / "run", "ppo")["results"]["judge"]
        assert about["calls"] == len(api.bodies) and about["faults"] == {}
        asked = Counter(api.questions)
        assert max(asked.values()) == 1, "equal responses to a prompt are asked about once"
        assert main(command("run", api.url, "--sample_every", "100", "--overwrite")) == 0
        assert len(api.bodies) == about["calls"] + 1, "the easy question alone"
    assert [row["reward/judge"] for row in rows_of(tmp_path / "run", "ppo")] == [row["reward/judge"] for row in rows]
    assert all(0 <= row["reward/judge"] <= 1 and row["reward/judge_failed"] == 0 for row in rows)
    assert manifest(tmp_path / "run", "ppo")["parents"].keys() == {"sft"}


@pytest.mark.slow
def test_a_server_that_limits_rates_talks_nonsense_and_dies_loses_no_score_and_none_is_invented(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that was interrupted ends with the adapter of one against a server that never failed to answer."""
    lock, seen, state = threading.Lock(), Counter[str](), {"alive": True, "answered": 0, "limited": False}
    verdicts: dict[str, list[str]] = {}

    def reply(question: str) -> Raw:
        text = answer_in(question)
        with lock:
            seen[question] += 1
            if not state["alive"]:
                return Raw(503, b"gone")
            if state["limited"] and seen[question] == 1 and len(text) % 2:
                return Raw(429, b"slow down", {"Retry-After": "0.02"})
            if len(text) % 5 == 3:
                return says("As an assistant I like it. Score: 9")
            state["answered"] += 1
            if state["limited"] and state["answered"] == 12:
                state["alive"] = False
            verdicts.setdefault(question, []).append(text)
        return rated(question)

    with serve(reply) as api:
        flags = ("--judge_concurrency", "1", "--reward_failure_score", "-0.5", "--sample_every", "100")
        assert main(command("whole", api.url, *flags)) == 0
        whole = rows_of(tmp_path / "whole", "ppo")
        assert sum(row["reward/judge_failed"] for row in whole) > 0, "some replies were no scores"
        seen.clear(), verdicts.clear()
        state.update(alive=True, answered=0, limited=True)

        assert main(command("stopped", api.url, *flags)) == 1
        said = capsys.readouterr().err
        assert re.search("answered none of the last [23] questions|did not answer", said)
        assert "everything is saved. Give the same command again to go on" in said
        assert manifest(tmp_path / "stopped", "ppo")["status"] != "finished"
        done = len(rows_of(tmp_path / "stopped", "ppo"))
        assert 1 <= done < 3, "it stopped within the second or third iteration"
        assert main(command("stopped", api.url, *flags)) == 2, "the server is still gone: refused before anything loads"

        state.update(alive=True, limited=False)
        assert main(command("stopped", api.url, *flags)) == 0
    assert adapter(tmp_path, "stopped") == adapter(tmp_path, "whole")
    rows = rows_of(tmp_path / "stopped", "ppo")
    for key in ("reward/judge", "reward/judge_failed", "rollout/score"):
        assert [row[key] for row in rows] == [row[key] for row in whole]
    assert all(len(texts) == 1 for question, texts in verdicts.items() if "week" not in question), "no score is lost"


def test_a_judge_without_a_key_is_refused_before_anything_is_loaded(
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("lora_rlhf.stages.ppo_setup.open_parent_base", refuse)
    with serve(lambda _: Raw(401, b'{"error": {"message": "no key"}}')) as api:
        assert main(command("run", api.url)) == 2
    said = capsys.readouterr().err
    assert "--reward_judge endpoint" in said and "no key was sent: OPENAI_API_KEY is not set" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_budget_stops_a_run_and_a_larger_one_goes_on(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--judge_price_in", "10000", "--judge_price_out", "0", "--judge_concurrency", "1")  # 1 a question
    with serve(rated) as api:
        assert main(command("run", api.url, *flags, "--judge_budget", "12")) == 1
        assert "calls have cost 12, and judge_budget is 12" in capsys.readouterr().err
        assert len(api.bodies) == 12
        assert main(command("run", api.url, *flags, "--judge_budget", "12")) == 1
        assert len(api.bodies) == 13, "what was spent is remembered; the easy question is asked anew"
        assert main(command("run", api.url, *flags, "--judge_budget", "500")) == 0
    assert manifest(tmp_path / "run", "ppo")["results"]["judge"]["cost"] > 12


def test_best_of_n_by_a_judge(parents: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", DEMONSTRATIONS[:6])
    words = f"sample --run {parents} --prompts {prompts} --to {tmp_path}/best.jsonl --best-of 12 --by judge {LIMITS}"
    with serve(lambda question: says("?") if len(answer_in(question)) % 5 == 3 else rated(question)) as api:
        judge = f"--reward_judge endpoint --judge_model m --judge_url {api.url} --judge_cache {tmp_path}/cache"
        assert main(f"{words} {judge} --judge_retries 0".split()) == 0
    report = json.loads((tmp_path / "best.report.json").read_text())
    kept = [json.loads(line)["completion"] for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert all(len(text) % 5 != 3 for text in kept), "a response without a score is never the best"
    expected = [(rating(text) - 1) / 6 for text in kept]
    assert report["mean_score"]["after"] == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert report["mean_score"]["after"] >= report["mean_score"]["before"]


# JudgedReward alone, with a model that answers at once


class Model:
    """Answers each question by `answer`; None is a fault, an exception is raised."""

    def __init__(self, answer: Callable[[str], str | None], is_down: bool = False) -> None:
        self.answer, self.is_down = answer, is_down

    def identity(self) -> dict[str, Any]:
        return {"model": "m"}

    def ask(self, questions: Sequence[str], read: Callable[[str], str | None], on_reply: Any) -> None:
        for number, question in enumerate(questions):
            verdict = read(self.answer(question) or "")
            on_reply(number, Reply(verdict, "" if verdict else "no verdict", is_down=self.is_down and not verdict))

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        return None

    def close(self) -> None:
        pass


def reward(tmp_path: Path, model: Model, against: str | None) -> JudgedReward:
    asker = Asker("local", model, Cache(tmp_path / "cache"))
    judge = RatingJudge(asker, RatingTemplate()) if against is None else PairwiseJudge(asker, QuestionTemplate())
    return JudgedReward(judge, 1.0, against, -2.0)


def longer(question: str) -> str | None:
    return (
        None if "bad" in sides(question) else json.loads(longer_wins(question).body)["choices"][0]["message"]["content"]
    )


def test_in_a_group_a_response_gets_the_share_of_comparisons_that_it_wins(tmp_path: Path) -> None:
    prompts = [Prompt.of("One?")] * 3 + [Prompt.of("Two?")] * 3
    responses = ["long answer", "long answer", "short", "bad", "longest of them", "x"]
    scores, failed = reward(tmp_path, Model(longer), "group").score(prompts, responses, 3)
    assert scores == [0.75, 0.75, 0.0, -2.0, 1.0, 0.0] and failed == 1


def test_against_a_reference_a_row_without_one_does_not_count(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"gold": "medium"}, {"gold": "medium"}, {"gold": None}, {}, {"gold": "medium"}]
    prompts = [Prompt(Prompt.of("One?").messages, meta=meta) for meta in rows]
    scores, failed = reward(tmp_path, Model(longer), "@gold").score(prompts, ["bad", "s", "x", "y", "long answer"], 1)
    assert scores == [-2.0, 0.0, None, None, 1.0] and failed == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Model(lambda question: None if answer_in(question) == "bad" else "Score: 3", is_down=True),
            "did not answer 1 question",
        ),
        (
            Model(lambda question: "Score: 3" if answer_in(question) == "bad" else "no"),
            "no usable reply on 3 of 4 responses",
        ),
        (Model(lambda question: "no"), "gave no verdict"),
    ],
)
def test_a_judge_that_does_not_work_is_no_score(tmp_path: Path, model: Model, message: str) -> None:
    with pytest.raises(NoJudgement, match=message):
        reward(tmp_path, model, None).score([Prompt.of("One?")] * 4, ["one", "two", "bad", "three"], 1)


ENDPOINT: dict[str, Any] = {"reward_judge": "endpoint", "judge_model": "m", "judge_url": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"reward_judge": "local"}, "--reward_judge local needs --judge_model"),
        ({"reward_judge": "endpoint", "judge_model": "m"}, "--reward_judge endpoint needs --judge_url"),
        ({"judge_model": "m"}, "are for reward_judge, which is not given"),
        (ENDPOINT | {"reward_judge_against": "answer"}, "'answer', expected group or @COLUMN"),
        (ENDPOINT | {"reward_judge_against": "group"}, "samples_per_prompt must be at least 2"),
        (ENDPOINT | {"reward_judge_weight": 0.0}, "reward_judge_weight is 0.0"),
        (ENDPOINT | {"judge_budget": 1.0}, "judge_budget needs judge_price_in"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, Any], fault: str) -> None:
    faults = PPOConfig(run="r", prompts="p", **values).faults()
    assert len(faults) == 1 and fault in faults[0]


def test_sample_names_what_is_missing() -> None:
    usual: dict[str, Any] = {"run": "r", "prompts": "p", "to": "t"}
    assert "by judge needs reward_judge" in SampleConfig(**usual, best_of=2, by="judge").faults()[0]
    assert (
        "best_of must be at least 2"
        in SampleConfig(**usual, best_of=1, by="judge", reward_judge_against="group", **ENDPOINT).faults()[0]
    )


def test_a_column_for_the_reference_that_is_not_there_is_named(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("run", "http://127.0.0.1:1/v1", "--reward_judge_against", "@gold")) == 2
    assert "reward_judge_against is '@gold', but the prompts have no such column" in capsys.readouterr().err
