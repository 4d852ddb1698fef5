"""One person at the label tab, without a browser: what clicks lead to, and what is said when they cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo import label_session as module
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.label_session import NOTHING_PLACED, LabelActions, LabelSession
from lora_rlhf_demo.rows import RowFile

from lora_rlhf.data.sources import Source, read_rankings

CANDIDATES = [{"prompt": f"Question {number}?", "responses": ["a", "b", "c"]} for number in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write(tmp_path / "runs" / "first" / "data" / "candidates.jsonl", CANDIDATES)
    return tmp_path / "runs"


def moved(session: LabelSession, ranks: list[int]) -> dict[str, Any]:
    """What the page sends after the answers were put into that order."""
    assert session.value is not None
    return {**session.value, "ranks": ranks, "placed": [True] * len(ranks), "read": [True] * len(ranks)}


def test_from_the_name_to_the_last_prompt(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    session = actions.begin("first", " Ann ")
    assert session.labeler == "Ann"
    for number in range(3):
        assert session.task is not None and session.task.prompt.messages[0].content == f"Question {number}?"
        session = actions.save(session, moved(session, [1, 1, 2]) | {"prompt_flags": ["unclear"]})
    assert session.task is None and "everything" in session.note
    rows = RowFile(runs / "first" / "rankings.jsonl").rows()
    assert [sorted(row["ranks"]) for row in rows] == [[1, 1, 2]] * 3
    assert "3 of 3" in actions.progress_html(session)


def placed(session: LabelSession, ranks: list[int], is_placed: list[bool]) -> dict[str, Any]:
    return moved(session, ranks) | {"placed": is_placed}


def test_answers_that_nobody_ranked_are_asked_about_once_and_saved_as_equals(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    assert first.value is not None and first.value["ranks"] == [1, 1, 1]
    shown = {**first.value, "read": [True] * 3}
    for value in (shown, {**shown, "placed": True}, {**shown, "placed": [True]}):
        asked = actions.save(first, value)
        assert asked.note == NOTHING_PLACED and asked.task == first.task
        assert asked.value is not None and asked.value["placed"] == [False] * 3
    assert RowFile(runs / "first" / "rankings.jsonl").rows() == []
    saved = actions.save(asked, asked.value or {})
    assert saved.task != first.task
    (row,) = RowFile(runs / "first" / "rankings.jsonl").rows()
    assert row["ranks"] == [1, 1, 1]


def test_answers_that_nobody_ranked_share_the_last_rank(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    saved = actions.save(first, placed(first, [2, 1, 2], [False, True, False]))
    assert saved.task != first.task and saved.note == "Saved. 2 answers you did not rank share the last rank."
    (row,) = RowFile(runs / "first" / "rankings.jsonl").rows()
    assert sorted(row["ranks"]) == [1, 2, 2]


def test_answers_that_nobody_ranked_are_not_better_than_others_unasked(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    asked = actions.save(first, placed(first, [1, 1, 2], [False, False, True]))
    assert "2 answers you have not ranked would be saved as better" in asked.note and asked.task == first.task
    assert asked.value is not None and asked.value["placed"] == [False, False, True]
    assert actions.save(asked, asked.value).note == "Saved."


def test_what_was_taken_back_is_shown_as_it_was(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    value = moved(first, [2, 3, 1]) | {"ratings": [5, None, 7], "flags": [[], ["opinion"], []]}
    back = actions.undo(actions.save(first, value | {"prompt_flags": ["unclear"]}))
    assert back.task == first.task and back.value is not None
    assert (back.value["ranks"], back.value["ratings"]) == ([2, 3, 1], [5, None, 7])
    assert (back.value["flags"], back.value["prompt_flags"]) == ([[], ["opinion"], []], ["unclear"])


def test_an_ideal_answer_is_the_best_of_its_ranking_and_a_demonstration(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    value = moved(first, [1, 2, 2]) | {"ideal": " All of it. ", "comment": "why", "reasons": ["clear"]}
    saved = actions.save(first, value)
    rankings, refused = read_rankings(str(runs / "first" / "rankings.jsonl"), strict=True)
    assert refused.count == 0
    assert (rankings[0].responses[-1], rankings[0].ranks[-1]) == ("All of it.", 1)
    assert sorted(rankings[0].ranks[:3]) == [2, 3, 3]
    assert rankings[0].prompt.meta["comment"] == "why" and rankings[0].prompt.meta["reasons"] == ["clear"]
    (demonstration,) = Source(str(runs / "first" / "rankings.demonstrations.jsonl"), "demonstrations")
    assert demonstration.response == "All of it." and demonstration.prompt.messages[0].content == "Question 0?"
    back = actions.undo(saved)
    assert back.value is not None and back.value["ideal"] == "All of it." and back.value["ranks"] == [1, 2, 2]
    assert RowFile(runs / "first" / "rankings.demonstrations.jsonl").rows() == []
    copied = actions.save(back, moved(back, [1, 2, 3]) | {"ideal": "b"})
    assert copied.is_failure and "word for word" in copied.note
    too_long = actions.save(back, moved(back, [1, 2, 3]) | {"comment": "x" * 3000})
    assert too_long.is_failure and "at most 2,000" in too_long.note


def test_a_page_that_is_sent_twice_saves_once(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    once = actions.save(first, moved(first, [1, 2, 3]))
    again = actions.save(first, moved(first, [3, 2, 1]))  # as after a reload while the first was on its way
    assert again.note == module.TWICE and again.task == once.task
    assert [row["ranks"] for row in RowFile(runs / "first" / "rankings.jsonl").rows()] == [
        [[1, 2, 3][again_place] for again_place in inverse(first)]
    ]


def inverse(session: LabelSession) -> list[int]:
    """The place on the page of each response."""
    assert session.task is not None
    order = session.task.display_order(session.labeler)
    return [order.index(index) for index in range(len(order))]


def test_what_was_not_opened_to_the_end_is_asked_about_and_noted(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    asked = actions.save(first, moved(first, [1, 2, 3]) | {"read": [True, False, True]})
    assert "not opened 1 answer" in asked.note and asked.task == first.task
    actions.save(asked, moved(asked, [1, 2, 3]) | {"read": [True, False, True]})
    (row,) = RowFile(runs / "first" / "rankings.jsonl").rows()
    assert row["unread"] == [first.task.display_order("Ann")[1]]


def test_two_people_with_one_name_are_told_apart(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    assert actions.begin("first", "Ann", "one browser").task is not None
    asked = actions.begin("first", "Ann", "another browser")
    assert asked.task is None and asked.labeler == "" and "another browser" in asked.note
    assert actions.begin("first", "Ann", "another browser", asked.asked_name).task is not None
    assert actions.begin("first", "Ann", "another browser").task is not None, "now it is known"
    assert actions.begin("first", "Ann B.", "third browser", asked.asked_name).task is not None


def test_who_is_not_listed_cannot_label_and_a_slip_is_named(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs), labelers=("Ann", "Ben")))
    assert actions.begin("first", "Ann").task is not None
    refused = actions.begin("first", "Anne")
    assert refused.is_failure and "Did you mean Ann?" in refused.note


def test_a_stale_page_cannot_label_another_prompt(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")
    second = actions.skip(first)
    failed = actions.save(second, moved(first, [1, 2, 3]))
    assert failed.is_failure and "another task" in failed.note and failed.task == second.task


@pytest.mark.parametrize("run", ["../first", "", ".", "nowhere", "first/../first"])
def test_a_run_that_is_none_is_refused_with_a_message(runs: Path, run: str) -> None:
    session = LabelActions(DemoConfig(root=str(runs))).begin(run, "Ann")
    assert session.is_failure and session.task is None


def test_without_candidates_the_page_says_how_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    session = LabelActions(DemoConfig(root=str(tmp_path / "runs"))).begin("first", "Ann")
    assert session.is_failure and "lora-rlhf sample" in session.note
    assert session.labeler == "Ann"


def test_a_disk_that_fails_keeps_the_task(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    first = actions.begin("first", "Ann")

    def fail(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowFile, "add", fail)
    failed = actions.save(first, moved(first, [1, 2, 3]))
    assert failed.is_failure and "No space left" in failed.note and failed.task == first.task


def test_candidates_that_were_made_anew_are_read_anew(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    assert len(actions.read_labelling("first").tasks) == 3
    write(runs / "first" / "data" / "candidates.jsonl", CANDIDATES[:2])
    assert len(actions.read_labelling("first").tasks) == 2


def test_the_qualification_ends_with_what_it_showed(runs: Path, tmp_path: Path) -> None:
    known = write(tmp_path / "known.jsonl", [{"prompt": "Exam?", "responses": ["a", "b"], "ranks": [2, 1]}])
    actions = LabelActions(DemoConfig(root=str(runs), qualification=known))
    session = actions.begin("first", "Ann")
    assert session.task is not None and session.task.known_ranks == (2, 1)
    wrong = [1, 2] if session.task.display_order("Ann") == (0, 1) else [2, 1]
    told = actions.save(session, moved(session, wrong))
    assert "0 % of 1 pairs" in told.note and "75 % are asked for" in told.note and "You may go on" in told.note
    assert told.task is not None and told.task.known_ranks is None
    assert len(RowFile(runs / "first" / "rankings.qualification.jsonl").rows()) == 1


def test_the_order_shown_is_the_labelers_own(runs: Path) -> None:
    actions = LabelActions(DemoConfig(root=str(runs)))
    shown = {name: actions.begin("first", name).value for name in ("Ann", "Ben", "Cleo", "Dan", "Eve")}
    assert len({tuple(value["texts"]) for value in shown.values() if value}) > 1
    assert module.RANKINGS == "rankings.jsonl"
