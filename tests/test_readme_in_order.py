"""The commands of the README, as they are written and in their order, in a folder with a user's files.

A tiny random model stands where the README names one of the hub. What is added to a command makes it short, and takes
the reward model of these few rankings, which is one by chance.
"""

import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from lora_rlhf_demo import app

from lora_rlhf.cli.main import main
from tests.support.releases import make_report, write_report
from tests.support.stages import DEMONSTRATIONS, write_rows

README = Path(__file__).parent.parent / "README.md"
SHORT = "--max_prompt_tokens 64 --max_response_tokens 8"
TRAINING = "--max_prompt_tokens 64 --max_response_tokens 64 --batch_size 4"
ADDED = {
    "sft": f"{TRAINING} --epochs 1 --validation_fraction 0.2",
    "sample": f"{SHORT} --min_responses 2 --max_responses 3",
    "reward": f"{TRAINING} --validation_fraction 0.2",
    "ppo": f"{SHORT} --batch_size 4 --minibatch_size 4 --iterations 2 --accept_chance_reward --overwrite",
    "dpo": f"{TRAINING} --validation_fraction 0.2",
    "evaluate": SHORT,
    "export": "--parity_prompts 2 --parity_tokens 4 --force",
    "chat": "--max_response_tokens 4",
}
OF_OTHERS = ("scripts/", "source ", "accelerate ")


def commands() -> Iterator[list[str]]:
    """The words of each command of ours, without its comment."""
    for block in re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL):
        for line in block.splitlines():
            if not line.startswith(OF_OTHERS):
                program, *words = shlex.split(line, comments=True)
                assert program == "lora-rlhf"
                yield words


def rank_samples() -> None:
    """What people do in the browser: the first of the responses is the best."""
    rows = [json.loads(line) for line in Path("runs/mine/candidates.jsonl").read_text().splitlines()]
    ranked = [row | {"ranks": list(range(1, len(row["responses"]) + 1))} for row in rows]
    write_rows(Path("runs/mine/rankings.jsonl"), ranked)
    write_rows(Path("rankings.jsonl"), ranked)


class CtrlC:
    """An event that nobody waits for: the user ends the app as soon as it is served."""

    def wait(self) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_order(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Qwen").mkdir()
    Path("Qwen/Qwen2.5-1.5B").symlink_to(tiny_model("qwen2"))
    write_rows(Path("demonstrations.jsonl"), DEMONSTRATIONS)
    prompts = [{"prompt": row["prompt"]} for row in DEMONSTRATIONS]
    write_rows(Path("prompts.jsonl"), prompts)
    write_rows(Path("held_out.jsonl"), [{"prompt": f"{row['prompt']} now"} for row in prompts[:4]])
    monkeypatch.setattr(app, "threading", SimpleNamespace(Event=CtrlC))
    ran = []
    for words in commands():
        name = words[0]
        if name == "gate":  # as if the policy of a random model had won
            write_report(Path("runs/mine"), make_report(Path("runs/mine")))
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\n"))
        added = [] if "--verify" in words else shlex.split(ADDED.get(name, ""))
        assert main([*words, *added]) == 0, words
        if name == "sample":
            rank_samples()
        ran.append(name)
    assert {"doctor", "data", "inspect", *ADDED, "demo", "gate", "promote"} <= set(ran)
    assert Path("serving").resolve() == (tmp_path / "exports/mine").resolve()
