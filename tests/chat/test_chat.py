"""A conversation in the terminal: its commands, its text as it streams, Ctrl-C, pipes, runs and exports."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_rlhf.chat.conversation import HELP, Conversation, ConversationEnd
from lora_rlhf.chat.loaded_run import load_run, stream_text
from lora_rlhf.cli import main as cli
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.system.shown_text import visible


def said(conversation: Conversation, question: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.prompt_and_seed(question)[0].messages]


def test_the_conversation_grows_and_begins_anew() -> None:
    talk = Conversation(None, 0.5, 3)
    assert said(talk, "a") == [("user", "a")]
    first = talk.prompt_and_seed("a")[1]
    talk.add_answer("a", "b")
    assert said(talk, "c") == [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert talk.prompt_and_seed("c")[1] != first
    assert "with that system" in talk.run_command("/system Be brief.")
    assert said(talk, "d") == [("system", "Be brief."), ("user", "d")] and talk.prompt_and_seed("d")[1] == first
    talk.add_answer("d", "e")
    talk.run_command("/reset")
    assert said(talk, "f") == [("system", "Be brief."), ("user", "f")]
    talk.run_command("/system")
    assert said(talk, "f") == [("user", "f")]
    with pytest.raises(BadRow):
        talk.prompt_and_seed("  ")


def test_settings_of_the_next_answer() -> None:
    talk = Conversation(None, 0.5, 0)
    assert talk.run_command("/temperature 0") == "temperature 0" and talk.temperature == 0
    for wrong in ("/temperature", "/temperature hot", "/temperature -1", "/temperature nan", "/temperature inf"):
        assert "at least 0" in talk.run_command(wrong)
    assert talk.temperature == 0
    before = talk.prompt_and_seed("a")[1]
    talk.add_answer("a", "b")
    assert talk.run_command("/seed 0") == "seed 0" and talk.prompt_and_seed("a")[1] == before
    assert talk.run_command("/seed 1") == "seed 1" and talk.prompt_and_seed("a")[1] != before
    for wrong in ("/seed", "/seed x", "/seed -1", "/seed 1000000000000"):
        assert "whole number" in talk.run_command(wrong) and talk.seed == 1
    assert talk.run_command("/help") == HELP and "no command" in talk.run_command("/quiet")
    with pytest.raises(ConversationEnd):
        talk.run_command("/quit")


def test_a_saved_conversation_is_a_demonstration(tmp_path: Path) -> None:
    talk, path = Conversation("S", 1.0, 0), tmp_path / "talk.jsonl"
    assert "nothing was said" in talk.run_command(f"/save {path}")
    talk.add_answer("Hi \x1b", "Hello é")
    assert "name of a file" in talk.run_command("/save")
    assert talk.run_command(f"/save {path}") == f"{path}: 3 messages"
    row = json.loads(path.read_text())
    assert [one["content"] for one in row["messages"]] == ["S", "Hi \x1b", "Hello é"]
    assert "is there already" in talk.run_command(f"/save {path}")
    assert "cannot be written" in talk.run_command(f"/save {tmp_path / 'no' / 'where'}")


def test_a_terminal_obeys_nothing_that_a_model_writes() -> None:
    evil = "\x1b]0;title\x07 \x1b[2J\r\b\x7f\x9b31m \u202eabc\u2066 \u0000"
    clean = visible(evil)
    assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 for one in clean)
    assert "\u202e" not in clean and "\u2066" not in clean and "title" in clean and "\\u202e" in clean
    assert clean.startswith("\u241b]0;title\u2407 \u241b[2J\u240d\u2408\u2421\\u009b31m")
    kept = "line\n\ttab é 漢 👩\u200d🚀 naïve"
    assert visible(kept) == kept


def test_text_streams_without_halves_of_characters() -> None:
    raw = "a 漢 🎉!".encode()
    shown = list(stream_text(iter(raw), lambda drawn: bytes(drawn).decode(errors="replace")))
    assert "".join(shown) == "a 漢 🎉!" and not any("\ufffd" in one for one in shown)
    cut = list(stream_text(iter(raw[:-2]), lambda drawn: bytes(drawn).decode(errors="replace")))
    assert "".join(cut) == "a 漢 \ufffd"  # what never came whole is said so at the end
    assert list(stream_text(iter([]), lambda drawn: "")) == [""]


def piped(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return cli.main(["chat", str(folder), "--device", "cpu", "--max-response-tokens", "6", *words])


def test_a_pipe_is_a_conversation(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One answer a question on standard output and nothing else; a role of the run, or a merged export, answers."""
    lines = f"Hello\n\n/temperature 0\nAnd you?\n/save {tmp_path / 'talk'}\n/reset\nHello\n/quit\nnever asked\n"
    assert piped(run, lines, monkeypatch, "--temperature", "0") == 0
    first = capsys.readouterr()
    assert "temperature 0" in first.err and "a new conversation" in first.err
    messages = json.loads((tmp_path / "talk").read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    answer = visible(answers[0])
    assert first.out.count(answer) >= 2  # the same question, the same answer
    assert piped(run, "Hello\n", monkeypatch, "--temperature", "0", "--role", "sft") == 0
    assert capsys.readouterr().out.strip() not in ("", answer)
    merged = ["export", str(run), "--to", str(tmp_path / "out"), "--dtype", "float32", "--parity", "none"]
    assert cli.main(merged) == 0
    capsys.readouterr()
    assert piped(tmp_path / "out", "Hello\nAnd you?\n", monkeypatch, "--temperature", "0") == 0
    exported = capsys.readouterr().out
    assert exported == first.out[: len(exported)] and answer in exported


def test_what_cannot_talk_is_refused(
    run: Path,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(folder: Path, match: str, *words: str) -> None:
        assert piped(folder, "Hello\n", monkeypatch, *words) == 2
        assert match in capsys.readouterr().err

    refused(tmp_path / "nowhere", "neither a run with a finished")
    refused(tiny_model("llama"), "has no role 'sft'", "--role", "sft")
    refused(run, "temperature is -1.0", "--temperature", "-1")
    scorer = tmp_path / "scorer"
    scorer.mkdir()
    (scorer / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    refused(scorer, "a reward model, which scores")
    shutil.rmtree(run / "ppo")
    refused(run, "no ppo stage", "--role", "policy")


def read_until(terminal: int, text: str, seconds: float = 20) -> str:
    """What a program wrote to its terminal up to a text."""
    found, deadline = b"", time.monotonic() + seconds
    while text.encode() not in found:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], found[-2000:].decode(errors="replace")
        found += os.read(terminal, 65536)
    return found.decode(errors="replace")


ENDLESS = """
import signal, sys, time, types
from lora_rlhf.cli import main as cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored

class Endless:
    role, max_context_tokens = "policy", 64
    def encode(self, prompt, longest_answer):
        self.question = prompt.messages[-1].content
        return [1], False
    def stream_answer(self, ids, temperature, seed, longest_answer, stop):
        while not stop():
            yield "word "
            time.sleep(0.001)
        if self.question == "deaf":
            yield "I see. "
            while True:
                yield "word "
                time.sleep(0.001)

module = types.SimpleNamespace(LoadedRun=Endless, load_run=lambda *words, **settings: Endless())
sys.modules["lora_rlhf.chat.loaded_run"] = module  # which would load torch
sys.exit(cli.main(["chat", "nobody"]))
"""


@pytest.fixture
def terminal() -> Iterator[tuple[subprocess.Popen, int]]:
    """The program in a terminal of its own, with answers that never end by themselves."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ENDLESS]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    yield process, ours
    process.kill()
    process.wait()
    os.close(ours)


def test_ctrl_c_stops_the_answer_and_a_second_one_the_program(
    terminal: tuple[subprocess.Popen, int], tmp_path: Path
) -> None:
    process, screen = terminal
    read_until(screen, "> ", seconds=60)
    while not select.select([screen], [], [], 0.5)[0]:  # pressed before the line is waited for, it is seen by the next
        process.send_signal(signal.SIGINT)
    read_until(screen, "/quit ends")
    os.write(screen, b"Hello\n")
    read_until(screen, "word ")
    process.send_signal(signal.SIGINT)
    read_until(screen, "(stopped)")
    os.write(screen, f"/save {tmp_path / 'talk'}\n".encode())
    read_until(screen, "2 messages")
    question, answer = json.loads((tmp_path / "talk").read_text())["messages"]
    assert question["content"] == "Hello" and answer["content"].startswith("word"), "what was said is kept"
    os.write(screen, b"deaf\n")
    read_until(screen, "word ")
    process.send_signal(signal.SIGINT)
    read_until(screen, "I see. ")
    process.send_signal(signal.SIGINT)  # a second one ends what does not stop
    read_until(screen, "interrupted")
    assert process.wait(timeout=20) == 130


def test_a_model_stops_when_it_is_told_to(run: Path) -> None:
    """With the same seed, what it had said by then is how the whole answer begins."""
    loaded = load_run(run, device="cpu")
    ids, _ = loaded.encode(Prompt((Message("user", "Hello"),)), 40)
    whole = list(loaded.stream_answer(ids, 1.0, 0, 40, lambda: False))
    said: list[str] = []
    for piece in loaded.stream_answer(ids, 1.0, 0, 40, lambda: len(said) >= 3):
        said.append(piece)
    assert 3 <= len(said) < len(whole) / 2 and "".join(whole).startswith("".join(said[:3]))


def test_a_conversation_that_the_template_refuses_is_told_and_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with templates that know no system message: the program goes on, and nothing of it is remembered."""
    for stage in ("sft", "ppo"):
        path = run / stage / "manifest.json"
        manifest = json.loads(path.read_text())
        refusal = (
            "{% if messages[0]['role'] == 'system' %}"
            "{{ raise_exception('No system role: ' + messages[0]['content']) }}{% endif %}"
        )
        manifest["base"]["chat_template"] = refusal + manifest["base"]["chat_template"]
        path.write_text(json.dumps(manifest))
    assert piped(run, "Hello\n/system\nHello\n", monkeypatch, "--system", "Be \x1b brief.") == 0
    told = capsys.readouterr()
    assert (
        "No system role: Be \u241b brief." in told.err
        and "\x1b" not in told.err
        and len(told.out.strip().splitlines()) >= 1
    )
    assert piped(run, "Hello\n", monkeypatch) == 0
    assert capsys.readouterr().out == told.out, "only the second question was answered, and as the first of all"
