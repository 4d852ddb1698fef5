"""Run as text by a fresh interpreter, without this package: an exported folder in plain transformers, measured.

usage: python -I -c SOURCE FOLDER DEVICE TRUST_REMOTE_CODE. Prints one line of JSON: figures against those that
parity.json recorded of the trained model. It recorded only the most probable tokens; the others count as one token, so
that the KL is a lower bound of the true one.
"""

import json
import sys
from pathlib import Path

FORBIDDEN_PACKAGES = ("lora_rlhf", "peft", "bitsandbytes", "trl")
for name in FORBIDDEN_PACKAGES:
    sys.modules[name] = None  # type: ignore[assignment]  # whoever imports it gets an ImportError

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def recorded_kl(logprobs: torch.Tensor, recorded: torch.Tensor) -> float:
    """Sum over positions of KL(trained || this). Log-probabilities (N, K) of the same tokens; the others count as 1."""
    other_probabilities = [(1 - part.exp().sum(dim=-1)).clamp(min=1e-12) for part in (recorded, logprobs)]
    known_kl = (recorded.exp() * (recorded - logprobs)).sum(dim=-1)
    return (
        (known_kl + other_probabilities[0] * (other_probabilities[0] / other_probabilities[1]).log())
        .clamp(min=0)
        .sum()
        .item()
    )


@torch.no_grad()
def measure_folder(folder: Path, device: str, trust_remote_code: bool) -> dict[str, float]:
    """The figures of the model in a folder."""
    recorded = json.loads((folder / "parity.json").read_text())
    AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, recorded["computed_in"]),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
    )
    model.to(device).eval()
    num_tokens = num_same_top = num_same_response = 0
    kl = largest_error = 0.0
    for row in recorded["prompts"]:
        prompt, greedy, num_counted = row["prompt_ids"], row["greedy_ids"], row["counted"]
        ids = torch.tensor([[*prompt, *greedy[:num_counted]]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].cpu().double()
        top_ids, recorded_logprobs = (
            torch.tensor(row["top_ids"]),
            torch.tensor(row["top_logprobs"], dtype=torch.float64),
        )
        logprobs = logits.log_softmax(dim=-1).gather(1, top_ids)
        kl += recorded_kl(logprobs, recorded_logprobs)
        largest_error = max(largest_error, (logprobs - recorded_logprobs).abs().max().item())
        num_same_top += int((logits.argmax(dim=-1) == top_ids[:, 0]).sum())
        num_tokens += num_counted
        generated = model.generate(
            ids[:, : len(prompt)],
            attention_mask=torch.ones_like(ids[:, : len(prompt)]),
            max_new_tokens=num_counted,
            do_sample=False,
        )
        num_same_response += generated[0, len(prompt) :].tolist() == greedy[:num_counted]
    count = len(recorded["prompts"])
    return {
        "prompts": count,
        "positions": num_tokens,
        "kl_per_token": kl / num_tokens,
        "max_logprob_error": largest_error,
        "top1_agreement": num_same_top / num_tokens,
        "same_response": num_same_response / count,
    }


if __name__ == "__main__":
    print(json.dumps(measure_folder(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True")))
