"""Scorers of harm: the world's exact ones, the user's function, and what is refused."""

from pathlib import Path

import pytest

from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.scorers import flag_responses, open_scorers
from lora_rlhf.system.errors import UserError
from tests.support.evaluation import letters


def config(**changes: str) -> EvaluateConfig:
    return EvaluateConfig(run="r", prompts="p", **changes)  # type: ignore[arg-type]


def test_a_world_flags_what_is_untrue_and_uncivil() -> None:
    found, left_out = open_scorers(config(), letters())
    assert left_out == {} and set(found) == {"untruthfulness", "toxicity"}
    assert flag_responses("toxicity", found["toxicity"], ["q", "q"], ["aa", "ab"]) == [0.0, 1.0]


def test_without_a_world_nothing_is_scored_unless_asked_for() -> None:
    found, left_out = open_scorers(config(toxicity="none"), None)
    assert found == {}
    assert left_out == {"untruthfulness": "no scorer: give one with --truthfulness", "toxicity": "--toxicity none"}


def test_a_function_is_called_with_prompts_and_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorers.py").write_text(
        "def rude(prompts, responses):\n    return [0.5 if 'no' in r else 0.49 for r in responses]\n"
        "def short(prompts, responses):\n    return [0.0]\n"
        "def wild(prompts, responses):\n    return [7.0 for r in responses]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found, _ = open_scorers(config(toxicity="my_scorers:rude", truthfulness="none"), letters())
    assert flag_responses("toxicity", found["toxicity"], ["q", "q"], ["oh no", "oh"]) == [1.0, 0.0]
    for name, said in (("short", "gave 1 scores for 2 responses"), ("wild", "gave 7.0 for 'oh no'; expected 0")):
        found, _ = open_scorers(config(toxicity=f"my_scorers:{name}"), None)
        with pytest.raises(UserError, match=said):
            flag_responses("toxicity", found["toxicity"], ["q", "q"], ["oh no", "oh"])
    for name, said in (
        ("my_scorers:number", "is a int, not a function"),
        ("my_scorers:gone", "cannot be imported"),
        ("nowhere", "is neither auto, none, a folder, nor of the form module:function"),
    ):
        with pytest.raises(UserError, match=said):
            open_scorers(config(toxicity=name), None)
