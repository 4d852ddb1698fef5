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

from lora_rlhf import cli
from lora_rlhf.chat.conversation import HELP, Conversation, Done, harmless
from lora_rlhf.chat.speaker import pieces
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import LoraSettings, SharedModel


def said(conversation: Conversation, question: str) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.ask(question)[0].messages]


def test_the_conversation_grows_and_begins_anew() -> None:
    talk = Conversation(None, 0.5, 3)
    assert said(talk, "a") == [("user", "a")]
    first = talk.ask("a")[1]
    talk.remember("a", "b")
    assert said(talk, "c") == [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert talk.ask("c")[1] != first
    assert "with that system" in talk.command("/system Be brief.")
    assert said(talk, "d") == [("system", "Be brief."), ("user", "d")] and talk.ask("d")[1] == first
    talk.remember("d", "e")
    talk.command("/reset")
    assert said(talk, "f") == [("system", "Be brief."), ("user", "f")]
    talk.command("/system")
    assert said(talk, "f") == [("user", "f")]
    with pytest.raises(BadRow):
        talk.ask("  ")


def test_settings_of_the_next_answer() -> None:
    talk = Conversation(None, 0.5, 0)
    assert talk.command("/temperature 0") == "temperature 0" and talk.temperature == 0
    for wrong in ("/temperature", "/temperature hot", "/temperature -1", "/temperature nan", "/temperature inf"):
        assert "at least 0" in talk.command(wrong)
    assert talk.temperature == 0
    before = talk.ask("a")[1]
    talk.remember("a", "b")
    assert talk.command("/seed 0") == "seed 0" and talk.ask("a")[1] == before
    assert talk.command("/seed 1") == "seed 1" and talk.ask("a")[1] != before
    for wrong in ("/seed", "/seed x", "/seed -1", "/seed 1000000000000"):
        assert "whole number" in talk.command(wrong) and talk.seed == 1
    assert talk.command("/help") == HELP and "no command" in talk.command("/quiet")
    with pytest.raises(Done):
        talk.command("/quit")


def test_a_saved_conversation_is_a_demonstration(tmp_path: Path) -> None:
    talk, path = Conversation("S", 1.0, 0), tmp_path / "talk.jsonl"
    assert "nothing was said" in talk.command(f"/save {path}")
    talk.remember("Hi \x1b", "Hello é")
    assert "name of a file" in talk.command("/save")
    assert talk.command(f"/save {path}") == f"{path}: 3 messages"
    row = json.loads(path.read_text())
    assert [one["content"] for one in row["messages"]] == ["S", "Hi \x1b", "Hello é"]
    assert "is there already" in talk.command(f"/save {path}")
    assert "cannot be written" in talk.command(f"/save {tmp_path / 'no' / 'where'}")


def test_a_terminal_obeys_nothing_that_a_model_writes() -> None:
    evil = "\x1b]0;title\x07 \x1b[2J\r\b\x7f\x9b31m \u202eabc\u2066 \u0000"
    clean = harmless(evil)
    assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 for one in clean)
    assert "\u202e" not in clean and "\u2066" not in clean and "title" in clean and "\\u202e" in clean
    assert clean.startswith("\u241b]0;title\u2407 \u241b[2J\u240d\u2408\u2421\\u009b31m")
    kept = "line\n\ttab é 漢 👩\u200d🚀 naïve"
    assert harmless(kept) == kept


def test_text_streams_without_halves_of_characters() -> None:
    raw = "a 漢 🎉!".encode()
    shown = list(pieces(iter(raw), lambda drawn: bytes(drawn).decode(errors="replace")))
    assert "".join(shown) == "a 漢 🎉!" and not any("\ufffd" in one for one in shown)
    cut = list(pieces(iter(raw[:-2]), lambda drawn: bytes(drawn).decode(errors="replace")))
    assert "".join(cut) == "a 漢 \ufffd"  # what never came whole is said so at the end
    assert list(pieces(iter([]), lambda drawn: "")) == [""]


@pytest.fixture
def run(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run with an SFT model and a policy, which answer differently."""
    model = SharedModel(load_base(BaseSpec(str(tiny_model("llama"))), "cpu"))
    for number, (role, stage) in enumerate((("sft", "sft"), ("policy", "ppo"))):
        model.add_role(role, LoraSettings(rank=4))
        for name, parameter in model.named_parameters_of(role):
            if ".lora_B." in name:
                parameter.data.fill_(0.02 * (1 + number))
        folder = tmp_path / "run" / stage
        folder.mkdir(parents=True)
        model.save_role(role, folder / "adapter")
        manifest = {
            **{"format": 1, "stage": stage, "status": "finished", "id": stage, "parents": {}, "data": {}},
            **{"seconds": 1.0, "results": {}, "base": describe_base(model)},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "run"


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
    assert first.out.count(answers[0]) >= 2  # the same question, the same answer
    assert piped(run, "Hello\n", monkeypatch, "--temperature", "0", "--role", "sft") == 0
    assert capsys.readouterr().out.strip() not in ("", answers[0])
    merged = ["export", str(run), "--to", str(tmp_path / "out"), "--dtype", "float32", "--parity", "none"]
    assert cli.main(merged) == 0
    capsys.readouterr()
    assert piped(tmp_path / "out", "Hello\nAnd you?\n", monkeypatch, "--temperature", "0") == 0
    exported = capsys.readouterr().out
    assert exported == first.out[: len(exported)] and answers[0] in harmless(exported)


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


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    """What a program wrote to its terminal up to a text."""
    found, deadline = b"", time.monotonic() + seconds
    while text.encode() not in found:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, found.decode(errors="replace")
        found += os.read(terminal, 65536)
    return found.decode(errors="replace")


@pytest.fixture
def terminal(run: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """The program in a terminal of its own, with answers that never end by themselves."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lora_rlhf.cli", "chat", str(run), "--device", "cpu"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    yield process, ours
    process.kill()
    process.wait()
    os.close(ours)


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: tuple[subprocess.Popen, int]) -> None:
    process, screen = terminal
    read_until(screen, "> ")
    process.send_signal(signal.SIGINT)
    assert "/quit ends" in read_until(screen, "/quit ends")
    os.write(screen, b"/temperature 3\n")  # so that no end is likely
    read_until(screen, "temperature 3\r\n")
    os.write(screen, b"Hello\n")
    read_until(screen, "Hello\r\n")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    read_until(screen, "> ")
    os.write(screen, b"/quit\n")
    assert process.wait(timeout=30) == 0
