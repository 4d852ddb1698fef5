"""`revise`: a model behind a server of this machine, or a stage of a run, revises answers by written principles."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.cli.main import main
from lora_rlhf.configs.label import ReviseConfig
from lora_rlhf.data.sources import Source, read_rankings
from lora_rlhf.judges import endpoint, question
from lora_rlhf.judges.question import split_principles
from lora_rlhf.stages import revise as page
from lora_rlhf.stages.judging import PRINCIPLES
from lora_rlhf.stages.revise import revise
from lora_rlhf.system.errors import Stopped, UserError
from tests.support.fake_api import Raw, says, serve
from tests.support.stages import write_rows

ANSWER = r"===== answer (\w+)\n(.*?)\n===== end of answer"
PRINCIPLE = r"by one principle:\n\n(.*?)\n\nThe request"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., ReviseConfig]:
    rows = [{"prompt": f"Question {number}?", "responses": ["a", "b"], "ended": [False, True]} for number in range(6)]
    path = write_rows(tmp_path / "candidates.jsonl", rows)

    def make(url: str, **changes: Any) -> ReviseConfig:
        values = {"responses": path, "to": str(tmp_path / "better.jsonl"), "by": "endpoint", "judge_model": "m"}
        more = {"judge_url": url, "judge_retries": 0, "judge_price_in": 1.0, "judge_price_out": 1.0, "rounds": 3}
        return ReviseConfig(**{**values, **more, **changes})

    return make


Configure = Callable[..., ReviseConfig]


def longer(question: str) -> Raw:
    """A model that finds every answer too short, up to four letters."""
    (_, answer), *_ = re.findall(ANSWER, question, re.DOTALL)
    return says(f"Revision: is what I was asked for.\n**Revision:**\n{answer if len(answer) > 3 else answer + 'a'}\n")


def test_each_round_begins_with_the_last_revision(configure: Configure, tmp_path: Path) -> None:
    with serve(longer) as api:
        report = revise(configure(api.url))
    (first, *_) = rows = rows_of(tmp_path / "better.jsonl")
    assert len(rows) == 6 and {row["completion"] for row in rows} == {"aaaa"} and first["by"] == "m"
    assert len(list(Source(str(tmp_path / "better.jsonl"), "demonstrations"))) == 6
    rankings = read_rankings(str(tmp_path / "better.rankings.jsonl"))[0]
    assert {(r.responses, r.ranks, r.labeler, r.ended) for r in rankings} == {
        (("aaaa", "a"), (1, 2), "m", (True, False))
    }
    steps = rows_of(tmp_path / "better.steps.jsonl")
    assert [step["revision"] for step in steps[0]["steps"]] == ["aa", "aaa", "aaaa"]
    assert steps[0]["steps"][0]["critique"] == "Revision: is what I was asked for." and steps[0]["original"] == "a"
    principles = split_principles(PRINCIPLES.read_text())
    drawn = {step["principle"] for row in steps for step in row["steps"]}
    assert drawn <= set(principles) and len(drawn) > 2 and len(principles) == 7
    assert all(len({step["principle"] for step in row["steps"]}) > 1 for row in steps), "each round draws its own"
    assert {question for text in api.questions for question in re.findall(PRINCIPLE, text, re.DOTALL)} == drawn
    assert (report["revised"], report["unchanged"], report["judge"]["calls"]) == (6, 0, 18)
    assert report["judge"]["cost"] == pytest.approx(18 * 110 / 1e6)
    assert not list(tmp_path.glob(".*partial"))


def test_the_same_principles_are_drawn_whatever_the_order_and_other_seeds_draw_others(
    configure: Configure, tmp_path: Path
) -> None:
    def drawn(name: str, **changes: Any) -> dict[str, list[str]]:
        revise(configure(api.url, to=str(tmp_path / f"{name}.jsonl"), **changes))
        return {
            row["prompt"]: [step["principle"] for step in row["steps"]]
            for row in rows_of(tmp_path / f"{name}.steps.jsonl")
        }

    rows = rows_of(tmp_path / "candidates.jsonl")
    turned = write_rows(tmp_path / "other_way.jsonl", rows[::-1])
    with serve(longer) as api:
        one = drawn("one")
        num_calls = len(api.bodies)
        assert drawn("turned", responses=turned) == one
        assert len(api.bodies) == num_calls  # replies are kept
        assert drawn("other", seed=1) != one


def test_a_failure_in_any_round_leaves_the_prompt_out(configure: Configure, tmp_path: Path) -> None:
    def reply(question: str) -> Raw:
        return says("Fine as it is.") if "Question 2?" in question and "\naaa\n" in question else longer(question)

    with serve(reply) as api:
        report = revise(configure(api.url))
    assert (report["revised"], report["failed"]) == (5, 1)
    assert report["judge"]["faults"] == {"no verdict in its last line": 1}
    for name in ("better", "better.rankings", "better.steps"):
        assert "Question 2?" not in (tmp_path / f"{name}.jsonl").read_text()


def test_goes_on_where_it_died(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PROMPTS_AT_A_TIME", 2)
    is_alive = True

    def reply(question: str) -> Raw:
        return longer(question) if is_alive or "Question 4?" not in question else Raw(503)

    names = ("whole", "better")
    with serve(reply) as api:
        revise(configure(api.url, to=str(tmp_path / "whole.jsonl"), judge_cache=str(tmp_path / "other.jsonl")))
        is_alive = False
        with pytest.raises(Stopped, match=r"Stopped after 4 of 6 prompts"):
            revise(configure(api.url))
        is_alive = True
        report = revise(configure(api.url))
    for end in ("", ".rankings", ".steps"):
        whole, better = ((tmp_path / f"{name}{end}.jsonl").read_bytes() for name in names)
        assert whole == better
    assert report["judge"]["calls"] == 18 + 1  # the one that found the server gone


def test_unchanged_answers_are_no_pairs_and_faults_come_first(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, headings = tmp_path / "empty.md", tmp_path / "headings.md"
    empty.write_text(" \n")
    headings.write_text("# One\n\n## Two\n")
    with serve(lambda question: says("Good.\nRevision:\na")) as api:
        faults: list[tuple[dict[str, Any], str]] = [
            ({"principles": str(empty)}, "0 characters"),
            ({"principles": str(headings)}, "only headings"),
            ({"by": "stage"}, "by stage needs run"),
            ({"by": "stage", "run": str(tmp_path)}, "no sft stage there"),
            ({"rounds": 0}, "rounds is 0"),
        ]
        for changes, message in faults:
            with pytest.raises(UserError, match=message):
                revise(configure(api.url, **changes))
        assert api.bodies == []
        config = configure(api.url)
        words = ["--responses", config.responses, "--to", config.to, "--by", "endpoint", "--judge-url", api.url]
        assert main(["revise", *words, "--judge-model", "m"]) == 0
    assert rows_of(tmp_path / "better.rankings.jsonl") == [] and len(rows_of(tmp_path / "better.jsonl")) == 6
    assert "answers that no round changed: 6" in capsys.readouterr().out


def test_a_stage_of_the_run_is_asked_in_its_own_template(
    configure: Configure, parents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[str] = []
    monkeypatch.setattr(
        question.RevisionTemplate, "template", "{mark} {request} {answer}"
    )  # the context has 256 tokens
    monkeypatch.setattr(page, "read_reply_with_revision", lambda text: replies.append(text) or "Well.\nRevision:\nc")
    sample = page.Sampler.sample

    def ended(sampler: page.Sampler, *given: Any) -> list[list[Any]]:  # a random model never ends by itself
        return [[replace(response, finished=True) for response in group] for group in sample(sampler, *given)]

    monkeypatch.setattr(page.Sampler, "sample", ended)
    config = configure("http://127.0.0.1:9/v1", by="stage", run=str(parents), judge_max_tokens=4, rounds=1)
    report = revise(config)
    assert report["judge"]["model"].startswith("sft of parents")
    assert report["revised"] == report["judge"]["calls"] == len(replies) == 6
    assert report["judge"]["tokens_out"] == 6 * 4 and all(replies)


def test_principles_are_list_items_and_bold_paragraphs_or_else_all_paragraphs() -> None:
    text = "# Ours\n\nRead these:\n\n**Kind.** It is\nkind.\n\n- one\n  more\n- two\n\n1. three\n"
    assert split_principles(text) == ["**Kind.** It is kind.", "one more", "two", "three"]
    assert split_principles("# Ours\n\nBe kind.\n\nBe\nbrief.") == ["Be kind.", "Be brief."]
