"""Run as text by a fresh interpreter, without this package: an exported reward model in plain transformers, measured.

usage: python -I -c SOURCE FOLDER DEVICE TRUST_REMOTE_CODE. Prints one line of JSON: how far its scores are from those
of the reward role that parity.json recorded.
"""

import json
import sys
from pathlib import Path

FORBIDDEN_PACKAGES = ("lora_rlhf", "peft", "bitsandbytes", "trl")
for name in FORBIDDEN_PACKAGES:
    sys.modules[name] = None  # type: ignore[assignment]  # whoever imports it gets an ImportError

import torch  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402


@torch.no_grad()
def measure_folder(folder: Path, device: str, trust_remote_code: bool) -> dict[str, float]:
    """The figures of the reward model in a folder."""
    recorded = json.loads((folder / "parity.json").read_text())
    AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=getattr(torch, recorded["computed_in"]),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
    )
    model.to(device).eval()
    differences = []
    for row in recorded["scores"]:
        score = model(input_ids=torch.tensor([row["ids"]], device=device)).logits[0, 0].item()
        differences.append(abs(score - model.config.score_offset - row["score"]))
    return {
        "conversations": len(differences),
        "score_difference": sum(differences) / len(differences),
        "max_score_difference": max(differences),
    }


if __name__ == "__main__":
    print(json.dumps(measure_folder(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True")))
