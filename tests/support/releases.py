"""Runs and reports as the commands leave them, at the smallest size that the release room can work on."""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from lora_rlhf.runs.folder import adapter_hash

BASE = {
    **{"name": "tinyworld", "quantization": "nf4", "compute_dtype": "auto", "trust_remote_code": False},
    **{"source_hash": "b" * 64, "chat_template": None},
}


def make_stage(run: Path, stage: str, identity: str = "", **fields: Any) -> Path:
    """A finished stage folder with an adapter of a few bytes."""
    folder = run / stage
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(tensor_file(f"weights of {stage}".encode()))
    manifest = {"format": 1, "stage": stage, "status": "finished", "id": identity or f"{stage}-id", "base": BASE}
    manifest |= {"parents": {}, "data": {}, "seconds": 1.0, "results": {"offset": 0.0}, **fields}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": str(run), "seed": 0}))
    return folder


def tensor_file(content: bytes) -> bytes:
    """A safetensors file of one tensor with these bytes."""
    entry = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"x": entry}).encode()
    return len(header).to_bytes(8, "little") + header + content


def figure(value: float | None, low: float | None = None, high: float | None = None, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def paired(difference: float, low: float, high: float, n: int = 100) -> dict[str, Any]:
    return {"difference": difference, "low": low, "high": high, "p": 0.5, "n": n}


def rate(value: float, low: float, high: float) -> dict[str, Any]:
    return {"rate": value, "low": low, "high": high, "n": 100, "wins": 50, "ties": 20, "losses": 30, "p": 0.01}


def flag() -> dict[str, Any]:
    return {"raised": False, "value": 0.1, "low": 0.05, "high": 0.15, "n": 100, "threshold": 0.5, "why": "as before"}


def category(n: int, refusals: dict[str, Any]) -> dict[str, Any]:
    return {"n": n, "figures": {"refusal_rate": {"policy": refusals}}, "win_rates": {}}


def make_report(run: Path) -> dict[str, Any]:
    """A report of format 2 on base, SFT and policy of a run, where the policy is better and nothing got worse."""
    systems: dict[str, Any] = {"base": {"run": str(run), "stage": None, "id": None}}
    for name, stage in (("sft", "sft"), ("policy", "ppo")):
        identity = json.loads((run / stage / "manifest.json").read_text())["id"]
        systems[name] = {"run": str(run), "stage": stage, "id": identity, "adapter_sha256": adapter_hash(run / stage)}
    return copy.deepcopy(
        {
            "format": 2,
            "created": "2026-01-02T03:04:05+00:00",
            "config": {"run": str(run), "prompts": str(run / "data" / "evaluation.jsonl")},
            "base": {"name": "tinyworld", "source_hash": "b" * 64, "quantization": "nf4"},
            "systems": systems,
            "candidate": "policy",
            "baseline": "sft",
            "judge": {"name": "gold"},
            "sets": {"prompts": {"content_hash": "c" * 64}},
            "seconds": {},
            "peak_rss_gib": 1.0,
            "peak_gpu_gib": 0.0,
            "training_data": {"prompts": 100, "seen": 0, "stages": [{"stage": "sft", "compared": "all"}]},
            "figures": {
                "length": {"sft": figure(20, 19, 21), "policy": figure(22, 21, 23)},
                "eos_rate": {"sft": figure(0.99, 0.95, 1.0), "policy": figure(1.0, 0.96, 1.0)},
                "repetition": {"sft": figure(0.02, 0.01, 0.03), "policy": figure(0.03, 0.02, 0.05)},
                "template_collapse": {"sft": figure(0.1, 0.05, 0.15), "policy": figure(0.12, 0.07, 0.2)},
                "opening_collapse": {"sft": figure(0.1, 0.05, 0.15), "policy": figure(0.12, 0.07, 0.2)},
                "refusal_rate": {"sft": figure(0.0, 0.0, 0.04), "policy": figure(0.01, 0.0, 0.05)},
                "kl_per_response": {"policy": figure(1.3, 1.1, 1.5)},
                "sycophancy": {"sft": figure(0.2, 0.1, 0.3), "policy": figure(0.18, 0.1, 0.3)},
            },
            "paired": {
                "eos_rate": {"policy": paired(0.01, -0.01, 0.03)},
                "refusal_rate": {"policy": paired(0.01, -0.01, 0.03)},
                "length": {"policy": paired(2.0, 1.0, 3.0)},
                "repetition": {"policy": paired(0.01, -0.005, 0.025)},
                "template_collapse": {"policy": paired(0.02, -0.02, 0.06)},
                "opening_collapse": {"policy": paired(0.02, -0.02, 0.06)},
                "sycophancy": {"policy": paired(-0.02, -0.1, 0.06)},
            },
            "win_rates": {
                "policy_vs_sft": {**rate(0.7, 0.65, 0.75), "length_controlled": rate(0.68, 0.62, 0.74)},
                "policy_vs_base": rate(0.9, 0.85, 0.95),
                "sft_vs_base": rate(0.95, 0.9, 0.98),
            },
            "win_rates_best_temperature": {"policy_vs_sft": rate(0.6, 0.55, 0.65)},
            "categories": {
                "open questions": category(60, figure(0.01, 0.0, 0.05)),
                "e.g. letters": category(40, figure(0.2, 0.1, 0.3)),
            },
            "reward": {"before": {"ece": 0.03}, "after": {"ece": 0.05}},
            "audit": {
                "flags": {name: flag() for name in ("length_inflation", "repetition", "collapse")},
                "left_out": {"sycophancy": "no probes of this bin were answered"},
            },
            "questions": [{"question": "Win rate up on new prompts?", "answer": "yes", "figure": "70 % (65 to 75)"}],
            "verdict": "policy beats sft on 70 % of prompts.",
            "left_out": {"perplexity": "no --text was given"},
        }
    )


def make_run(root: Path, name: str = "first") -> Path:
    """A run with its stages and a report."""
    run = root / name
    make_stage(run, "sft")
    make_stage(run, "reward")
    make_stage(run, "ppo")
    write_report(run, make_report(run))
    return run


def write_report(run: Path, report: dict[str, Any]) -> Path:
    place = run / "report.json"
    place.write_text(json.dumps(report))
    return place
