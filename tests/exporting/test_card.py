"""The model card: everything that the run says, nothing of the machine, and nothing that Markdown would obey."""

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_rlhf.cli import main as cli
from lora_rlhf.exporting.card import card_text
from lora_rlhf.exporting.card_usage import usage_section
from lora_rlhf.exporting.lineage import read_lineage

REPORT: dict[str, Any] = {
    **{"format": 2, "created": "2026-01-02T03:04:05+00:00", "config": {}},
    "base": {"name": "tinyworld", "source_hash": "00", "quantization": "nf4"},
    "systems": {
        "policy": {"run": "/secret/place/run", "stage": "ppo", "id": "ppo0"},
        "sft": {"run": "/secret/place/run", "stage": "sft", "id": "sft0"},
    },
    **{"candidate": "policy", "baseline": "sft", "judge": {"name": "local", "model": "/secret/place/judge"}},
    "sets": {"prompts": {"path": "/secret/place/held.jsonl", "content_hash": "00", "used": 99}},
    "training_data": {"prompts": 99, "seen": 4, "stages": []},
    "figures": {
        "win_rate": {"policy": {"value": 0.7, "low": 0.65, "high": 0.75, "n": 99}},
        "distinct_1": {
            "policy": {"value": 0.2, "low": None, "high": None, "n": 9},
            "sft": {"value": 0.4, "low": 0.35, "high": 0.45, "n": 9},
        },
        "reward_ece": {"policy": {"value": 0.05, "low": 0.04, "high": 0.06, "n": 9}},
    },
    "paired": {
        "distinct_1": {"policy": {"difference": -0.2, "low": -0.3, "high": -0.1, "p": 0.001, "n": 99}},
        "repetition": {"policy": {"difference": -0.1, "low": -0.2, "high": -0.05, "p": 0.001, "n": 99}},
        "toxicity": {"policy": {"difference": 0.1, "low": -0.2, "high": 0.3, "p": 0.4, "n": 99}},
        "length": {"policy": {"difference": 9.0, "low": 8.0, "high": 10.0, "p": 1e-9, "n": 99}},
    },
    "win_rates": {},
    "questions": [{"question": "Is it up?", "answer": "no", "figure": "By 3 <b>%</b>."}],
    "audit": {"flags": {"a": {"raised": True, "why": "Longer `answers`."}, "b": {"raised": None, "why": ""}}},
    **{"verdict": "Better, <b>mostly</b>.", "left_out": {}, "seconds": {}, "peak_rss_gib": 1.0, "peak_gpu_gib": 0.0},
}
RESULTS = {
    "sft": {"demonstrations": 1406, "validation": 94, "share_without_adapter": 0.5612},
    "reward": {
        **{"prompts": 1067, "pairs": 17813, "offset": 0.0625, "scale_divided": 1.2, "held_out_pairs": 2204},
        **{"label_agreement": 0.696, "label_agreement_pairs": 24910, "ece": 0.0323, "length_correlation": 0.0255},
        "accuracy": {"rate": 0.6955, "low": 0.668, "high": 0.7215, "n": 2204},
        "reliability": [{"low": 0.5, "high": 0.55, "confidence": 0.52, "accuracy": 0.51, "n": 624}],
    },
    "ppo": {
        "prompts": 3000,
        "reference": "sft",
        "kl": 1.376,
        "kl_coef": 0.1108,
        "first_score": -0.01,
        "last_score": 0.79,
    },
}
CONFIGS = {
    "sft": {"lora_rank": 16, "epochs": 2, "batch_size": 32},
    "reward": {"epochs": 1, "batch_size": 16},
    "ppo": {
        **{"iterations": 40, "batch_size": 96, "minibatch_size": 48, "kl_target": 1.2, "kl_coef": 0.15},
        **{"kl_horizon": 600.0, "max_prompt_tokens": 128, "max_response_tokens": 64, "missing_eos_score": -1.0},
        "pretraining_text": "/secret/place/text.jsonl",
    },
}


@pytest.fixture
def run(tiny_run: Callable[..., Path]) -> Path:
    """A run that says everything, and keeps its data in a place that is nobody's business."""
    folder = tiny_run()
    for stage, results in RESULTS.items():
        path = folder / stage / "manifest.json"
        data = {"rows | <i>": {"path": f"/secret/place/{stage}.jsonl", "sha256": "ab" * 32}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"results": results, "data": data}))
        (folder / stage / "config.yaml").write_text(yaml.safe_dump(CONFIGS[stage]))
    (folder / "report.json").write_text(json.dumps(REPORT))
    return folder


def exported(run: Path, to: Path, *words: str) -> str:
    assert cli.main(["export", str(run), "--to", str(to), "--parity_tokens", "4", "--device", "cpu", *words]) == 0
    return (to / "README.md").read_text()


@pytest.mark.slow
def test_the_card_tells_what_the_run_says(run: Path, tmp_path: Path) -> None:
    text = exported(run, tmp_path / "out", "--dtype", "float32")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    assert "ppo" in front["tags"] and "base_model" not in front
    for said in (
        *(
            "`sft0`",
            "`reward0`",
            "`ppo0`",
            "1,406 demonstrations",
            "17,813 pairs",
            "56% of the text model's weights",
            f"`{'ab' * 32}`",
            "| ppo.jsonl |",
        ),
        *("69.6% of 24,910 pairs", "69.5% of 2,204 held-out pairs", "66.8% to 72.2%", "error: 0.032", "less 0.0625"),
        *("divided by 1.2 after", "| 0.50 to 0.55 | 0.520 | 0.510 | 624 |", "target 1.2 nats per response"),
        *(
            "horizon of 600",
            "batch_size 96",
            "minibatch_size 48",
            "kl_coef at the end: 0.111",
            "most 128 and responses of at most 64",
        ),
        *("| win rate | share | 0.7 (0.65 to 0.75) |", "KL per token, nats", "vllm serve", "ollama create"),
    ):
        assert said in text, said
    for said in (
        *(
            "99 prompts (`held.jsonl`), of which training had seen 4.",
            "Judge: a chat model on the same machine, judge.",
        ),
        "| distinct-1 | share | 0.2 | 0.4 (0.35 to 0.45) | higher | unique words over words",
        "Further than chance explains (p below 0.05), 1 of 3 figures:\n\n"
        "- distinct-1, by 0.2 (p 0.001), from 0.4 (0.35 to 0.45) to 0.2\n",
        *(
            "- Is it up? **No.** By 3 &lt;b>%&lt;/b>.",
            "- A sign of it: Longer 'answers'.",
            "1 of 2 signs were found, 1 could",
        ),
    ):
        assert said in text, said


def test_an_evaluation_of_another_model_is_left_out(run: Path, tmp_path: Path) -> None:
    """One that was made before the stage was trained anew; what belongs to the policy is not in another's card."""
    of_sft = exported(run, tmp_path / "sft", "--role", "sft", "--parity", "none")
    assert "| win rate |" in of_sft and "Worse than" not in of_sft and "mostly" not in of_sft
    of_reward = exported(run, tmp_path / "reward", "--role", "reward", "--parity", "none")
    assert "| reward ECE | 0 to 1 | 0.05 (0.04 to 0.06) |" in of_reward and "| win rate |" not in of_reward
    systems = REPORT["systems"] | {"policy": REPORT["systems"]["policy"] | {"id": "before"}}
    (run / "report.json").write_text(json.dumps(REPORT | {"systems": systems}))
    text = exported(run, tmp_path / "policy", "--parity", "none")
    assert "left out: it was made before this model was trained" in text and "| win rate |" not in text
    systems = {"sft": REPORT["systems"]["sft"]}
    (run / "report.json").write_text(
        json.dumps(REPORT | {"systems": systems, "candidate": "sft", "figures": {}, "paired": {}})
    )
    text = exported(run, tmp_path / "alone", "--parity", "none")
    assert "left out: this model was not part of it" in text and "| distinct-1 |" not in text


def test_the_card_gives_nothing_away_and_obeys_nobody(run: Path, tmp_path: Path) -> None:
    for role in ("policy", "reward", "sft"):
        text = exported(run, tmp_path / role, "--role", role, "--parity", "none")
        assert "/secret" not in text and str(tmp_path) not in text
        assert "<b>" not in text and "<i>" not in text and "rows \\| &lt;i>" in text
        assert "/secret" not in (tmp_path / role / "export.json").read_text()


@pytest.mark.slow
def test_a_run_that_says_little(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run = tiny_run()
    (run / "report.json").write_text('{"format": 1, "win_rate": {}}')
    text = exported(run, tmp_path / "out", "--dtype", "float32")
    assert "no evaluation that can be read here" in text and "`ppo0`" in text
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    hub = facts["source"]["base"] | {"name": "owner/model"}
    licence = {"name": "apache-2.0", "files": ["LICENSE"]}
    again = card_text(
        facts | {"source": facts["source"] | {"base": hub}, "licence": licence}, read_lineage(run, "policy")
    )
    front = yaml.safe_load(again.split("---")[1])
    assert front["base_model"] == "owner/model" and front["license"] == "apache-2.0"
    assert "The base's licence is apache-2.0 (LICENSE)." in again


def test_an_adapter_on_the_embedded_base_finds_it() -> None:
    facts = {"kind": "adapter", "role": "policy", "rank": 8, "source": {"base": {"quantization": "nf4"}}}
    code = usage_section(facts, "tinyworld").split("```")[1]
    assert "from importlib.resources import files" in code
    where = re.search(r"from_pretrained\((str\(.*?\)), device_map", code)
    assert where is not None and (Path(eval(where[1], {"files": files})) / "config.json").is_file()
    assert 'from_pretrained("some/base"' in usage_section(facts, "some/base")
