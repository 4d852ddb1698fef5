"""A whole report in format 2 made by hand, as JSON and read, and the rows of its samples: for what reads reports."""

import random
from itertools import pairwise
from typing import Any

from lora_rlhf.evaluation.figures import CATALOGUE
from lora_rlhf.evaluation.report_model import Report
from lora_rlhf.system.typed_json import from_json

SYSTEMS = ("base", "sft", "policy")
PAIR = "policy_vs_sft"
CATEGORIES = {"chat": 120, "open QA": 90, "closed QA": 60, "brainstorming": 26, "poetry": 4}


def rate(value: float, n: int = 300, half: float | None = 0.04) -> dict[str, Any]:
    wins = round(value * n)
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"rate": value, **ends, "n": n, "wins": wins, "ties": 0, "losses": n - wins, "p": 0.01, "failed": 0}


def figure(value: float, half: float | None = 0.02, n: int = 300) -> dict[str, Any]:
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, **ends, "n": n}


def paired(difference: float, half: float = 0.02, p: float = 0.001, n: int = 300) -> dict[str, Any]:
    return {"difference": difference, "low": difference - half, "high": difference + half, "p": p, "n": n}


def report_of(values: dict[str, Any]) -> Report:
    """The report that these JSON values hold."""
    return from_json(Report, values)


def a_report(**changes: Any) -> dict[str, Any]:
    """The policy wins clearly, is as safe, is not longer, and its reward model is calibrated."""
    rng = random.Random(0)
    report: dict[str, Any] = {
        "format": 2,
        "created": "2026-01-02T03:04:05+00:00",
        "config": {"run": "runs/first"},
        "base": {"name": "tinyworld", "source_hash": "5" * 64, "quantization": "nf4"},
        "systems": {
            "base": {"run": "runs/first", "stage": None, "id": None},
            "sft": {"run": "runs/first", "stage": "sft", "id": "aaaa"},
            "policy": {"run": "runs/first", "stage": "ppo", "id": "bbbb"},
        },
        "candidate": "policy",
        "baseline": "sft",
        "judge": {"name": "gold", "failures": 0},
        "sets": {
            "prompts": {
                **{"path": "p.jsonl", "sha256": "1" * 64, "content_hash": "2" * 64},
                **{"used": 300, "refused": 0, "truncated": 0},
            },
            "selection": {"path": "s.jsonl", "sha256": "6" * 64, "content_hash": "7" * 64, "used": 100},
            "probes": {"name": "tinyworld", "content_hash": "3" * 64, "n": 252},
        },
        "training_data": {"prompts": 300, "seen": 0, "stages": []},
        "figures": {
            name: {system: figure(0.2 + 0.1 * place) for place, system in enumerate(SYSTEMS)} for name in CATALOGUE
        },
        "paired": {name: {system: paired(-0.01, 0.02, 0.4) for system in ("base", "policy")} for name in CATALOGUE},
        "win_rates": {
            PAIR: {**rate(0.75), "length_controlled": figure(0.74) | {"rate": 0.74}},
            "policy_vs_base": rate(0.97, half=0.02),
            "sft_vs_base": rate(0.93, half=0.03),
        },
        "win_rates_best_temperature": {PAIR: rate(0.64), "policy_vs_base": rate(0.97), "sft_vs_base": rate(0.94)},
        "temperature_sweep": {system: {"0": 0.4, "0.6": 0.5, "1": 0.45} for system in SYSTEMS},
        "best_temperature": dict.fromkeys(SYSTEMS, 0.6),
        "categories": {
            name: {
                "n": n,
                "figures": {
                    "score": {
                        s: figure(0.3 + 0.2 * i + 0.1 * rng.random(), 0.05 if n >= 10 else None, n)
                        for i, s in enumerate(SYSTEMS)
                    }
                },
                "paired": {"toxicity": {"policy": paired(0.0, 0.03, 1.0, n)}},
                "win_rates": {PAIR: rate(0.7 + 0.1 * rng.random(), n, 0.1 if n >= 10 else None)},
            }
            for name, n in CATEGORIES.items()
        },
        "clusters": {"category": {"p": 0.6, "worst": "chat", "rate": 0.27, "n": 120, "overall": 0.25, "groups": 4}},
        "reward": {
            "before": {"accuracy": rate(0.7), "ece": 0.03, "reliability": reliability(0.01), "label_agreement": 0.7},
            "after": {
                "accuracy": rate(0.66),
                "ece": 0.05,
                "ece_low": 0.03,
                "ece_high": 0.07,
                "reliability": reliability(0.06),
            },
        },
        "audit": {
            "flags": {
                "length": {
                    "raised": False,
                    "value": 0.1,
                    "low": 0.0,
                    "high": 0.2,
                    "threshold": 0.3,
                    "why": "Score and length are unrelated.",
                },
                "repetition": {
                    "raised": True,
                    "value": 0.5,
                    "low": 0.4,
                    "high": 0.6,
                    "threshold": 0.2,
                    "why": "Half of the answers repeat themselves.",
                },
            },
            "highest_reward": [],
            "parting": [],
            "by_kl": [
                {"sqrt_kl": 0.2 * i, "reward": 0.3 * i, "quality": 0.3 * i - 0.03 * i * i, "n": 60} for i in range(5)
            ],
        },
        "lengths": {
            "edges": [0, 8, 16, 24, 32],
            "counts": {"base": [10, 20, 70, 200], "sft": [90, 150, 50, 10], "policy": [70, 160, 60, 10]},
        },
        "verdict": "Sampled at temperature 1, the policy beats the SFT model on 75.0 % of prompts.",
        "left_out": {"perplexity": "no held-out text: give --text"},
        "seconds": {"sft": 12.0, "evaluate_generation": 3.0},
        "peak_rss_gib": 1.2,
        "peak_gpu_gib": 0.0,
    }
    report["questions"] = [
        {"question": "Is the win rate up on new prompts?", "answer": "yes", "figure": "It wins 75 %."}
    ]
    return report | changes


def reliability(gap: float) -> list[dict[str, Any]]:
    edges = [0.5 + 0.1 * i for i in range(6)]
    return [
        {"low": low, "high": high, "confidence": (low + high) / 2, "accuracy": (low + high) / 2 - gap, "n": 40}
        for low, high in pairwise(edges)
    ]


def sample_rows() -> list[dict[str, Any]]:
    """One won, one tied, one lost, one not judged; with what must not become HTML."""
    evil = "<script>alert(1)</script> & 'quoted' \"twice\""
    rows = []
    for number, outcome in enumerate((1.0, 0.5, 0.0, None)):
        margin = None if outcome is None else outcome - 0.5
        responses = {"base": f"{evil} base {number}", "sft": "short", "policy": ""}
        scores = {"base": 0.0, "sft": 0.5, "policy": 0.5 + (margin or 0)}
        rows.append(
            {
                **{"prompt": f"{evil} asked {number}", "category": "<b>chat</b>" if number else "poetry"},
                **{"responses": responses, "scores": scores, "outcome": outcome, "margin": margin},
            }
        )
    return rows
