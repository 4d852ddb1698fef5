"""Run as text by a fresh interpreter, without this package: an exported folder in plain transformers, measured.

usage: python -I -c SOURCE FOLDER DEVICE TRUST_REMOTE_CODE. Prints one line of JSON: figures against what parity.json
recorded of the trained model. Only the most probable tokens were recorded; the rest
of a distribution counts as one token, so that its KL is a lower bound of the true one.
"""

import json
import sys
from pathlib import Path

KEPT_OUT = ("lora_rlhf", "peft", "bitsandbytes", "trl")
for name in KEPT_OUT:
    sys.modules[name] = None  # type: ignore[assignment]  # whoever imports it gets an ImportError

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def recorded_kl(logprobs: torch.Tensor, recorded: torch.Tensor) -> float:
    """Sum over positions of KL(trained || this): (N, K) each, log-probabilities of the same tokens; the rest is one."""
    rest = [(1 - part.exp().sum(dim=-1)).clamp(min=1e-12) for part in (recorded, logprobs)]
    known = (recorded.exp() * (recorded - logprobs)).sum(dim=-1)
    return (known + rest[0] * (rest[0] / rest[1]).log()).clamp(min=0).sum().item()


@torch.no_grad()
def check(folder: Path, device: str, trust_remote_code: bool) -> dict[str, float]:
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
    tokens = same = greedy_same = 0
    kl = largest = 0.0
    for row in recorded["prompts"]:
        prompt, greedy, counted = row["prompt_ids"], row["greedy_ids"], row["counted"]
        ids = torch.tensor([[*prompt, *greedy[:counted]]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].cpu().double()
        top_ids, top = torch.tensor(row["top_ids"]), torch.tensor(row["top_logprobs"], dtype=torch.float64)
        found = logits.log_softmax(dim=-1).gather(1, top_ids)
        kl += recorded_kl(found, top)
        largest = max(largest, (found - top).abs().max().item())
        same += int((logits.argmax(dim=-1) == top_ids[:, 0]).sum())
        tokens += counted
        continued = model.generate(
            ids[:, : len(prompt)],
            attention_mask=torch.ones_like(ids[:, : len(prompt)]),
            max_new_tokens=counted,
            do_sample=False,
        )
        greedy_same += continued[0, len(prompt) :].tolist() == greedy[:counted]
    count = len(recorded["prompts"])
    return {
        "prompts": count,
        "positions": tokens,
        "kl_per_token": kl / tokens,
        "max_logprob_error": largest,
        "top1_agreement": same / tokens,
        "same_response": greedy_same / count,
    }


if __name__ == "__main__":
    found = check(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True")
    print(json.dumps(found))
