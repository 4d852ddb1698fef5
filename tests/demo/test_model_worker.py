"""The worker and its handler: answers of every column at once, one user's apart from another's, whatever goes wrong."""

import gc
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from lora_rlhf_demo import handler, loaded_runs
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.playground_tab import PlaygroundTab
from lora_rlhf_demo.requests import (
    Answered,
    Ask,
    Column,
    Failed,
    Open,
    Opened,
    Partial,
    Replaced,
    Score,
    Scored,
    Settings,
)
from lora_rlhf_demo.state import App
from lora_rlhf_demo.worker import OUT_OF_MEMORY, ModelWorker
from safetensors.torch import load_file, save_file

from lora_rlhf.data.batches import pad_left, pad_right
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import decode_response, pad_id, render_prompt, stop_ids
from lora_rlhf.model.forward import Sequences, response_logprobs, response_scores
from lora_rlhf.model.generate import generate_seeded
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import SharedModel
from tests.support.demo import OFFSET, STAGES, ask, last, save_run, texts, trained, worker_of

QUESTION = "Who counts the ships?"
SAYING = "The river is wide."


def alone(model: SharedModel, role: str, text: str, seed: int, length: int) -> list[int]:
    """What one stage answers on its own, by the generation that the evaluation uses."""
    ids = render_prompt(model.tokenizer, Prompt.of(text))
    stops = stop_ids(model.tokenizer)
    with model.role(role):
        ((found,),) = generate_seeded(
            model, [ids], [[seed]], max_new_tokens=length, temperature=1.0, stop_ids=stops, batch_size=1
        )
    return found.ids


def test_each_column_says_what_its_stage_says_alone(worker: ModelWorker, model: SharedModel) -> None:
    for seed in range(3):
        expected = [alone(model, stage, QUESTION, seed, 24) for stage in STAGES]
        spoken = texts(last(worker, ask("first", QUESTION, seed, length=24)))
        assert spoken == tuple(decode_response(model.tokenizer, ids).rstrip("\ufffd").strip() for ids in expected)
        assert len(set(spoken)) == len(STAGES)


def test_under_an_answer_are_its_score_its_kl_and_its_tokens(worker: ModelWorker, model: SharedModel) -> None:
    event = last(worker, ask("first", QUESTION, length=12))
    assert isinstance(event, Answered)
    prompt = render_prompt(model.tokenizer, Prompt.of(QUESTION))
    for stage, answer in zip(STAGES, event.answers, strict=True):
        ids = alone(model, stage, QUESTION, 0, 12)
        pad = pad_id(model.tokenizer)
        batch = Sequences(*pad_left([prompt], pad), *pad_right([ids], pad))
        with torch.no_grad():
            with model.role("reward"):
                score = response_scores(model, batch).item() - OFFSET
            found = []
            for role in (stage, "sft"):
                with model.role(role):
                    found.append(response_logprobs(model, batch, needs_entropy=False)[0].sum().item())
        assert answer.score == pytest.approx(score, abs=1e-4)
        assert answer.kl == pytest.approx(found[0] - found[1], abs=1e-3)
        assert sum(token.gap for token in answer.tokens) == pytest.approx(answer.kl, abs=1e-3)
        assert answer.num_tokens == len(ids)
        assert answer.tokens_per_s > 0
    assert event.answers[1].kl == pytest.approx(0, abs=1e-4)  # sft is the reference
    assert abs(event.answers[2].kl or 0) > 0.1


def test_a_stopped_answer_keeps_what_was_said(worker: ModelWorker) -> None:
    whole = texts(last(worker, ask("first", QUESTION, length=60)))
    ticket = worker.submit(ask("first", QUESTION, length=60))
    for event in ticket.events():
        if isinstance(event, Partial):
            ticket.stop()
        end = event
    assert isinstance(end, Answered) and end.is_stopped
    for answer, full in zip(end.answers, whole, strict=True):
        assert 0 < answer.num_tokens < 60
        assert full.startswith(answer.text)
        assert answer.score is not None


def test_the_last_act_in_place_of_a_request_is_displayed_after_all_of_its_answers(worker: ModelWorker) -> None:
    ticket = worker.submit(ask("first", QUESTION, length=60))
    events = ticket.events()
    while not isinstance(next(events), Partial):
        pass
    assert ticket.replace({"act": 1}) and ticket.replace({"act": 2})
    assert [event for event in events if not isinstance(event, Partial)][-1] == Replaced({"act": 2})
    assert not ticket.replace({"act": 3})  # nobody would display it


def test_a_page_closed_in_the_middle_does_not_hold_up_the_next(worker: ModelWorker) -> None:
    leaving: Any = worker.submit(ask("first", QUESTION, length=100)).events()
    while not isinstance(next(leaving), Partial):
        pass
    leaving.close()
    assert len(texts(last(worker, ask("first", QUESTION)))) == 3


def test_a_tab_ends_only_its_own_question_and_a_closed_page_all_of_its_own(root: Path, worker: ModelWorker) -> None:
    app = App(DemoConfig(root=str(root)), worker)
    first, label, other = (
        app.submit(page, tab, ask("first", QUESTION, length=100))
        for page, tab in (("page", "compare"), ("page", "label"), ("another page", "compare"))
    )
    again = app.submit("page", "compare", ask("first", SAYING, length=100))
    assert [ticket.is_stopped for ticket in (first, again, label, other)] == [True, False, False, False]
    app.stop("page", "compare")
    assert again.is_stopped and not label.is_stopped
    app.close_session("page")
    assert label.is_stopped and not other.is_stopped
    app.stop("page", "label")  # nobody's any more


def test_two_users_at_once_see_only_their_own_words(worker: ModelWorker) -> None:
    expected = {text: texts(last(worker, ask("first", text))) for text in (QUESTION, SAYING)}
    seen: dict[str, set[tuple[str, ...]]] = {QUESTION: set(), SAYING: set()}

    def chat(text: str) -> None:
        for _ in range(5):
            for event in worker.submit(ask("first", text)).events():
                if isinstance(event, Partial | Answered):
                    of = event.texts if isinstance(event, Partial) else texts(event)
                    seen[text].add(of)

    run_together([lambda text=text: chat(text) for text in expected])
    for text, whole in expected.items():
        for parts in seen[text]:
            assert all(full.startswith(part) for part, full in zip(parts, whole, strict=True)), (text, parts)


@pytest.mark.slow
@pytest.mark.long
def test_of_eight_users_and_200_prompts_none_is_lost_none_is_crossed_and_memory_is_flat(worker: ModelWorker) -> None:
    prompts = [f"User {user}, prompt {number}: {random.Random(user * 25 + number).random()}" for user in range(8)
               for number in range(25)]  # fmt: skip
    some = prompts[::10]
    expected = {text: texts(last(worker, ask("first", text, length=4))) for text in some}
    answers: dict[str, tuple[str, ...]] = {}
    before: list[int] = []

    def chat(user: int) -> None:
        for number in range(25):
            text = prompts[user * 25 + number]
            answers[text] = texts(last(worker, ask("first", text, length=4)))
            if len(answers) == 60:
                before.append(live_bytes())

    run_together([lambda user=user: chat(user) for user in range(8)])
    assert len(answers) == 200
    assert {text: answers[text] for text in some} == expected
    assert len(set(answers.values())) > 100  # prompts are told apart
    gc.collect()
    assert live_bytes() <= before[0] * 1.02


def live_bytes() -> int:
    """Memory of all tensors that are alive."""
    gc.collect()
    return sum(one.untyped_storage().nbytes() for one in gc.get_objects() if type(one) is torch.Tensor)


def run_together(jobs: list) -> None:
    """All at once; an error in any is raised here."""
    errors: list[BaseException] = []

    def guarded(job) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a request was lost"
    assert errors == []


def test_those_who_wait_are_told_their_place(worker: ModelWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = handler.stream_mixed

    def slow(*args, **kwargs):
        gate.wait(30)
        return real(*args, **kwargs)

    last(worker, Open("first"))
    monkeypatch.setattr(handler, "stream_mixed", slow)
    tickets = [worker.submit(ask("first", QUESTION)) for _ in range(3)]
    event = next(tickets[2].events())
    gate.set()
    assert event.num_ahead == 2


def test_a_longer_conversation_than_the_context_loses_its_beginning_and_says_so(worker: ModelWorker) -> None:
    turns = tuple(Message("user" if n % 2 == 0 else "assistant", f"turn {n}: " + SAYING) for n in range(21))
    event = last(worker, Ask("first", (Column("sft", turns),), Settings(1.0, 10_000, 0)))
    assert isinstance(event, Answered) and event.is_shortened
    assert event.answers[0].num_tokens <= 128  # half of the tiny model's 256
    short = last(worker, ask("first", QUESTION))
    assert isinstance(short, Answered) and not short.is_shortened


def test_scores_come_in_the_order_of_the_responses(worker: ModelWorker, model: SharedModel) -> None:
    messages = (Message("user", QUESTION),)
    one, other = (last(worker, Score("first", messages, (text,))) for text in ("The keeper.", "thank you the"))
    both = last(worker, Score("first", messages, ("The keeper.", "thank you the")))
    assert isinstance(both, Scored) and isinstance(one, Scored) and isinstance(other, Scored)
    assert both.scores == pytest.approx((one.scores[0], other.scores[0]), abs=1e-4)
    assert one.scores[0] != pytest.approx(other.scores[0], abs=1e-3)


def test_each_answer_of_the_playground_has_its_own_score(root: Path, worker: ModelWorker) -> None:
    with gr.Blocks():
        tab = PlaygroundTab(App(DemoConfig(root=str(root)), worker))
    *_, (now, page) = tab._score_answers(None, "first", QUESTION, "The keeper.", " ", "thank you the")
    alone = {
        place: last(worker, Score("first", (Message("user", QUESTION),), (text,))).scores[0]
        for place, text in ((0, "The keeper."), (2, "thank you the"))
    }
    assert now.scores == pytest.approx(alone, abs=1e-4)
    assert page.index("The keeper." if alone[0] > alone[2] else "thank you the") < page.index(
        f"{min(alone.values()):+.2f}"
    )


def test_stages_of_another_run_on_the_same_base_answer_beside_ones_own(
    root: Path, worker: ModelWorker, model: SharedModel
) -> None:
    save_run(model, root / "second")
    opened = last(worker, Open("first"))
    assert isinstance(opened, Opened)
    assert (opened.columns, opened.other_columns) == (STAGES, ("second:sft", "second:policy"))
    answers = texts(last(worker, ask("first", QUESTION, stages=("policy", "second:policy", "second:sft"))))
    assert answers[0] == answers[1] != answers[2]  # the two policies are the same adapter


def test_only_the_last_used_runs_are_kept_in_memory(
    root: Path, model: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_runs, "MOST_RUNS", 2)
    names = ["first", "b", "c", "d"]
    for name in names[1:]:
        save_run(model, root / name)
    runs = loaded_runs.LoadedRuns(root, "cpu")
    sizes = []
    for _ in range(3):
        for name in names:
            runs.load(name)
            assert runs.find_loaded(name) is not None
            assert len(runs.model.roles) <= 1 + 2 * 3
            sizes.append(sum(parameter.numel() for parameter in runs.model.causal.parameters()))
    assert len(set(sizes[2:])) == 1
    assert runs.find_loaded("first") is None and runs.find_loaded("c") is not None


def test_a_stage_made_again_is_loaded_again(root: Path, worker: ModelWorker, model: SharedModel) -> None:
    before = texts(last(worker, ask("first", QUESTION)))
    shutil.rmtree(root / "first")
    save_run(model, root / "first", sft="policy", policy="sft")
    base, sft, policy = texts(last(worker, ask("first", QUESTION)))
    assert (base, policy, sft) == before


def test_a_truncated_adapter_is_said_and_the_rest_goes_on(root: Path, worker: ModelWorker, model: SharedModel) -> None:
    broken = save_run(model, root / "broken") / "ppo" / "adapter" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    for _ in range(2):
        event = last(worker, Open("broken"))
        assert isinstance(event, Failed) and "broken/ppo" in event.reason
    assert len(texts(last(worker, ask("first", QUESTION)))) == 3


@pytest.mark.parametrize("harm", ["cannot be used: its tensors take", "does not fit the base"])
def test_adapters_that_cannot_be_loaded_are_refused_at_once_however_often(
    root: Path, worker: ModelWorker, model: SharedModel, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Those that cannot be read before a base is loaded; those that do not fit it with the base kept in memory."""
    broken = save_run(model, root / "broken") / "ppo" / "adapter" / "adapter_model.safetensors"
    if "fit" in harm:
        name, tensor = next((name, tensor) for name, tensor in load_file(broken).items() if ".lora_A." in name)
        save_file(load_file(broken) | {name: tensor[:, 1:].contiguous()}, broken)
    else:
        broken.write_bytes(broken.read_bytes() + b"\0" * 2**20)
    bases = []

    def count(*args: Any, **kwargs: Any) -> SharedModel:
        bases.append(args)
        return open_base(*args, **kwargs)

    monkeypatch.setattr(loaded_runs, "open_base", count)
    for _ in range(3):
        event = last(worker, Open("broken"))
        assert isinstance(event, Failed) and harm in event.reason
    assert len(bases) == ("fit" in harm)
    for _ in range(2):
        assert len(texts(last(worker, ask("first", QUESTION)))) == 3
        assert isinstance(last(worker, Open("broken")), Failed)
    assert len(bases) == 1


def test_a_run_on_another_base_takes_its_place(root: Path, worker: ModelWorker, tiny_model, model: SharedModel) -> None:
    save_run(trained(tiny_model("qwen3")), root / "other")
    first = texts(last(worker, ask("first", QUESTION)))
    other = texts(last(worker, ask("other", QUESTION)))
    assert texts(last(worker, ask("first", QUESTION))) == first != other
    mixed = last(worker, ask("first", QUESTION, stages=("sft", "other:sft")))
    assert isinstance(mixed, Failed) and "different bases" in mixed.reason
    assert texts(last(worker, ask("first", QUESTION))) == first


def test_out_of_memory_in_a_forward_is_said_and_the_app_goes_on(
    worker: ModelWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts(last(worker, ask("first", QUESTION)))
    real, calls = handler.mixed_logprobs, []

    def full(*args, **kwargs):
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(handler, "mixed_logprobs", full)
    assert last(worker, ask("first", QUESTION)) == Failed(OUT_OF_MEMORY)
    monkeypatch.setattr(handler, "mixed_logprobs", real)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", full)
    assert last(worker, ask("first", QUESTION)) == Failed(OUT_OF_MEMORY)
    monkeypatch.undo()
    assert len(calls) == 2
    assert texts(last(worker, ask("first", QUESTION))) == before


@pytest.mark.parametrize("name", ["../first", "", ".", "..", "/etc", "first/sft", "gone", "a" * 300, "fir\0st"])
def test_a_name_that_is_no_run_is_refused(worker: ModelWorker, name: str) -> None:
    event = last(worker, Open(name))
    assert isinstance(event, Failed) and repr(name[:80]) in event.reason


def test_a_link_out_of_the_root_is_refused(root: Path, worker: ModelWorker, model: SharedModel, tmp_path: Path) -> None:
    outside = save_run(model, tmp_path / "elsewhere" / "run")
    (root / "link").symlink_to(outside)
    event = last(worker, Open("link"))
    assert isinstance(event, Failed) and "not a run in runs/" in event.reason


def test_a_stage_that_a_run_does_not_have_is_refused(worker: ModelWorker) -> None:
    event = last(worker, ask("first", QUESTION, stages=("sft", "reward")))
    assert isinstance(event, Failed) and "'reward'" in event.reason


def test_after_closing_every_request_is_answered(root: Path) -> None:
    closed = worker_of(root)
    closed.close()
    assert isinstance(last(closed, Open("first")), Failed)
