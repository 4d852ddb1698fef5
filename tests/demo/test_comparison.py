"""Comparisons, votes and what is shown of them, without a model or a browser."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lora_rlhf_demo import show
from lora_rlhf_demo.compare import Comparison
from lora_rlhf_demo.conversations import Conversations
from lora_rlhf_demo.requests import ColumnAnswer, Settings, Token
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.runs import RunState
from lora_rlhf_demo.votes import parse_ranks, ranks_with_best, stage_win_rates, tied_ranks
from scipy import stats

from lora_rlhf.data.schema import Message
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.system.errors import UserError

SETTINGS = Settings(0.7, 40, 3)
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">[link](javascript:alert(3))'


def answer(text: str) -> ColumnAnswer:
    return ColumnAnswer(text, True, 3, 50.0, 0.5, 1.25, (Token(text, 1.25),))


def after(talk: Comparison, question: str, *texts: str, order: tuple[str, ...] | None = None) -> Comparison:
    """The comparison with one more turn."""
    ask = talk.request_next_turn(question, order or talk.stages, SETTINGS)
    return talk.with_answers(question, ask, [answer(text) for text in texts])


def test_each_column_goes_on_from_what_it_said_itself() -> None:
    talk = after(Comparison("run", ("base", "policy"), system=" Be brief. "), "Who?", "me", "you")
    base, policy = talk.request_next_turn("Why?", talk.stages, SETTINGS).columns
    start, end = (Message("system", "Be brief."), Message("user", "Who?")), Message("user", "Why?")
    assert base.messages == (*start, Message("assistant", "me"), end)
    assert policy.messages == (*start, Message("assistant", "you"), end)


def test_after_a_blind_vote_all_go_on_from_the_best_answer() -> None:
    talk = after(Comparison("run", ("base", "policy"), is_blind=True), "Who?", "one", "two", order=("policy", "base"))
    voted, _, _ = talk.with_vote((2, 1), "")
    for column in voted.request_next_turn("Why?", ("base", "policy"), SETTINGS).columns:
        assert column.messages[1] == Message("assistant", "two")


def test_a_column_that_was_added_goes_on_from_the_last_one() -> None:
    talk = after(Comparison("run", ("base", "policy")), "Who?", "me", "you").with_columns(("base", "sft"), False)
    base, sft = talk.request_next_turn("Why?", talk.stages, SETTINGS).columns
    assert (base.messages[1].content, sft.messages[1].content) == ("me", "you")


def test_a_vote_is_never_cast_on_names_that_were_seen() -> None:
    talk = after(Comparison("run", ("base", "sft"), is_blind=True), "Who?", "a", "b")
    seen = talk.with_columns(("base", "sft"), False).with_columns(("base", "sft"), True)
    assert talk.is_waiting_for_vote and not seen.is_waiting_for_vote
    voted, row, _ = talk.with_vote((1, 2), "")
    unvoted, vote = voted.without_last_vote()
    assert vote == row["vote"] and not unvoted.is_waiting_for_vote
    with pytest.raises(UserError, match="no vote"):
        unvoted.without_last_vote()


def test_versions_come_in_turn() -> None:
    talk = after(Comparison("run", ("base",)), "Who?", "one")
    for text in ("two", "three"):
        shown, earlier = talk.turns[-1], talk.before_turn(0)
        talk = earlier.with_answers(
            "Who?", earlier.request_next_turn("Who?", ("base",), SETTINGS), [answer(text)], shown
        )
    seen = []
    for _ in range(4):
        seen.append((talk.turns[-1].number, talk.turns[-1].answers[0].text, len(talk.turns[-1].versions)))
        talk = talk.with_next_version()
    assert seen == [(3, "three", 2), (1, "one", 2), (2, "two", 2), (3, "three", 2)]


def test_a_conversation_is_read_as_it_was_saved_and_by_its_browser_alone(tmp_path: Path) -> None:
    talk = after(Comparison("run", ("base", "sft"), "Be brief.", is_blind=True), "Who?\n" + HOSTILE, "a", "b")
    talk = talk.with_vote((2, 1), "")[0]
    own = Conversations(tmp_path, "ab" * 16)
    kept = own.save(talk)
    assert kept.id and own.load(kept.id) == kept == replace(talk, id=kept.id)
    assert own.save(after(kept, "Why?", "c", "d")).id == kept.id
    ((title, name),) = own.list()
    assert name == kept.id and title.startswith("Who? <script>") and title.endswith("(2)")
    for browser in ("cd" * 16, "", "../../x", "AB" * 16):
        other = Conversations(tmp_path, browser)
        assert other.list() == []
        with pytest.raises(UserError, match="no longer there"):
            other.load(kept.id)
    for name in ("../x", "", "0" * 12):
        with pytest.raises(UserError, match="no longer there"):
            own.load(name)
    assert Conversations(tmp_path, "").save(talk) == talk


def test_two_hundred_kept_conversations_are_listed_at_once(tmp_path: Path) -> None:
    talk = Comparison("run", ("base", "sft", "policy"))
    for number in range(20):
        talk = after(talk, f"Question {number}?", *["word " * 200] * 3)
    own = Conversations(tmp_path, "ab" * 16)
    for _ in range(200):
        own.save(replace(talk, id=""))
    began = time.monotonic()
    assert len(own.list()) == 200
    assert time.monotonic() - began < 0.5


def test_a_blind_order_is_drawn_and_an_open_one_is_as_chosen() -> None:
    stages = ("base", "sft", "policy")
    blind = Comparison("run", stages, is_blind=True)
    orders = {blind.column_order(random.Random(seed)) for seed in range(60)}
    assert len(orders) == 6 and all(sorted(order) == sorted(stages) for order in orders)
    assert {Comparison("run", stages).column_order(random.Random(seed)) for seed in range(9)} == {stages}


@pytest.mark.parametrize(
    ("talk", "question", "reason"),
    [
        (Comparison("run", ("base",)), " \n", "Write a question"),
        (Comparison("run", ()), "Who?", "Choose a column"),
        (Comparison("run", ("base",), is_blind=True), "Who?", "two columns"),
        (after(Comparison("run", ("base", "sft"), is_blind=True), "Who?", "a", "b"), "Why?", "Vote on these"),
    ],
)
def test_what_cannot_be_asked_is_said(talk: Comparison, question: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        talk.request_next_turn(question, talk.stages, SETTINGS)


def test_a_vote_is_a_ranking_that_the_reward_stage_reads(tmp_path: Path) -> None:
    talk = Comparison("run", ("base", "sft", "policy"), system="Be brief.", is_blind=True)
    talk, row, _ = after(talk, "Who?", "a", "b", "c", order=("sft", "policy", "base")).with_vote((2, 1, 2), "ann")
    talk, later, _ = after(talk, "Why?", "d", "e", "f").with_vote((1, 2, 3), "")
    file = RowFile(tmp_path / "votes.jsonl")
    file.add(row)
    file.add(later)
    (one, two), _ = read_rankings(str(file.path), strict=True)
    assert [message.content for message in one.prompt.messages] == ["Be brief.", "Who?"]
    assert (one.responses, one.ranks, one.labeler) == (("a", "b", "c"), (2, 1, 2), "ann")
    assert [message.content for message in two.prompt.messages] == ["Be brief.", "Who?", "b", "Why?"]
    assert (row["systems"], row["run"]) == (["sft", "policy", "base"], "run")


def test_equal_answers_share_the_better_rank() -> None:
    talk = after(Comparison("run", ("base", "sft", "policy"), is_blind=True), "Who?", "a", "b", " a")
    done, row, is_ranking = talk.with_vote((1, 2, 3), "")
    assert (done.turns[0].ranks, row["ranks"], is_ranking) == ((1, 2, 1), [1, 2, 1], True)


def test_a_vote_on_an_empty_answer_counts_but_is_no_ranking_to_train_on() -> None:
    talk = after(Comparison("run", ("base", "sft"), is_blind=True), "Who?", "", "b")
    done, row, is_ranking = talk.with_vote((2, 1), "ann")
    assert not is_ranking and "<em>empty</em>" in show.turns_html(done)
    assert stage_win_rates([json.loads(json.dumps(row))])["sft", "base"].wins == 1


@pytest.mark.parametrize("ranks", [(1,), (2, 2), (0, 1), ()])
def test_a_vote_that_ranks_not_all_is_refused(ranks: tuple[int, ...]) -> None:
    talk = after(Comparison("run", ("base", "sft"), is_blind=True), "Who?", "a", "b")
    with pytest.raises(UserError):
        talk.with_vote(ranks, "")
    done, _, _ = talk.with_vote((1, 2), "")
    with pytest.raises(UserError, match="nothing to vote"):
        done.with_vote((1, 2), "")


def test_names_are_shown_only_after_the_vote() -> None:
    talk = after(Comparison("run", ("base", "policy"), is_blind=True), "Who?", "a", "b", order=("policy", "base"))
    for hidden in (
        show.turns_html(talk),
        show.turns_html(talk, has_colours=True),
        show.live_turn_html(Comparison("run", ("base", "policy"), is_blind=True), "Who?", ["a", "b"]),
        json.dumps(talk.to_json_object()["turns"]),
    ):
        assert not any(word in hidden for word in ("base", "policy", "1.25", "0.50"))
    done, _, _ = talk.with_vote((1, 2), "")
    assert "policy (was A, rank 1)" in show.turns_html(done) and "+1.25" in show.turns_html(done)
    assert [found["stage"] for found in done.to_json_object()["turns"][0]["answers"]] == ["policy", "base"]


def test_going_back_forgets_what_came_after() -> None:
    talk = after(after(Comparison("run", ("base",)), "Who?", "a"), "Why?", "b")
    assert [turn.question for turn in talk.before_turn(1).turns] == ["Who?"]


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("A > B > C", (1, 2, 3)),
        ("c>a=b", (2, 2, 1)),
        ("A=B=C", (1, 1, 1)),
        ("B, A > C", (1, 1, 3)),
        ("BA>C", (1, 1, 3)),
    ],
)
def test_typed_rankings(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(text, 3) == ranks


@pytest.mark.parametrize("text", ["", "A > B", "A > B > C > D", "A > A > B", "A < B < C", "1 > 2 > 3", "x" * 10_000])
def test_what_is_no_ranking_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="for example A > B = C"):
        parse_ranks(text, 3)


def test_buttons_are_rankings_too() -> None:
    assert ranks_with_best(1, 3) == (2, 1, 2)
    assert tied_ranks(3) == (1, 1, 1)


def test_standings_count_every_pair_and_its_ties() -> None:
    rows = [{"systems": ["sft", "policy", "base"], "ranks": [2, 1, 3]}] * 7
    rows += [{"systems": ["policy", "sft"], "ranks": [1, 1]}] * 2
    rows += [{"systems": ["policy", "sft"], "ranks": [2, 1]}]
    foreign: list[Any] = [
        {"systems": "x", "ranks": 3},
        {"ranks": [1]},
        {"systems": ["a", "b"], "ranks": ["1", 2]},
        {"systems": [[]]},
    ]
    found = stage_win_rates([*rows, *foreign])
    assert list(found) == [("policy", "sft"), ("policy", "base"), ("sft", "base")]
    against = found["policy", "sft"]
    assert (against.wins, against.ties, against.losses) == (7, 2, 1) and against.rate == pytest.approx(0.8)
    interval = stats.binomtest(7, 7).proportion_ci(method="exact")
    assert (found["sft", "base"].low, found["sft", "base"].high) == pytest.approx(
        (interval.low, interval.high), abs=1e-6
    )


@pytest.mark.parametrize("hostile", [HOSTILE, "</div></article>", "& < > \" '"])
def test_what_anybody_wrote_is_text_and_never_markup(hostile: str) -> None:
    talk = after(Comparison(hostile, (hostile,)), hostile, hostile)
    shown = [
        show.turns_html(talk),
        show.turns_html(talk, has_colours=True),
        show.live_turn_html(talk, hostile, [hostile], hostile),
        show.failure_html(hostile),
        show.notice_html(hostile),
        show.line_html(hostile),
        show.no_runs_html([RunState(hostile, {"sft": hostile})], hostile),
        show.standings_table(stage_win_rates([{"systems": [hostile, "sft"], "ranks": [1, 2]}])),
    ]
    for page in shown:
        for tag in ("<script", "<img", "</div></article></", "& <"):
            assert tag not in page.replace("</div></article></div></section>", "")
        assert page.count("<") == page.count(">")


def test_control_characters_are_seen_and_not_obeyed() -> None:
    assert show.safe_html("\x1b[31mred\x00\x7f") == "␛[31mred␀␡"
    assert show.safe_html("a\u202eb\u2066c\x9b") == "a\\u202eb\\u2066c\\u009b"
    assert show.safe_html("line\n\ttab, مرحبا, 👩‍👩‍👧") == "line\n\ttab, مرحبا, 👩‍👩‍👧"


def test_a_very_long_text_is_cut_with_its_length() -> None:
    shown = show.safe_html("x" * 1_000_000)
    assert len(shown) < 210_000 and shown.endswith("(1000000 characters)")


def test_a_tokens_colour_grows_with_its_gap() -> None:
    shown = show.tokens_html([Token("a", 1.5), Token("b", -6.0)])
    assert 'more" style="--s:0.50" title="+1.50 nats">a<' in shown
    assert 'less" style="--s:1.00" title="-6.00 nats">b<' in shown


def test_an_answer_without_reward_model_or_policy_shows_only_what_is_known() -> None:
    talk = Comparison("run", ("sft",))
    ask = talk.request_next_turn("Who?", talk.stages, SETTINGS)
    bare = replace(answer("me"), score=None, kl=None, tokens=(), finished=False)
    shown = show.turns_html(talk.with_answers("Who?", ask, [bare]), has_colours=True)
    assert "score" not in shown and "KL" not in shown and "3 (cut)" in shown
