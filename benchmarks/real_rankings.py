"""Measures a small reward model on real rankings: accuracy by margin, calibration, and how much of it is length.

    python benchmarks/real_rankings.py --rankings rankings.jsonl.gz --to benchmarks/results/real_rankings.json

A tokenizer and a llama of 2.5 million parameters with random weights are made from the file's own text; the real SFT
and reward stages train it on a part of the prompts. The others tell how often it orders two responses as the file does,
beside what "the longer one wins" would get right of the very same pairs. So small a model, which has read nothing else,
is no good judge: what the figures show is whether the report tells a model of length from a model of quality.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from tiny import TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_rlhf.configs.stages import RewardConfig, SFTConfig
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Ranking
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.runs.folder import find_stage
from lora_rlhf.stages import reward, sft
from lora_rlhf.system.disk import sha256_of, write_json

VOCABULARY = 4096
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
LIMITS: dict[str, Any] = {"max_prompt_tokens": 96, "max_response_tokens": 384, "long_responses": "cut"}
LORA: dict[str, Any] = {"lora_rank": 32, "lora_alpha": 64.0, "lora_dropout": 0.0}
RESPONSES = 4  # of each prompt, drawn at random: the time grows with them
HELD_OUT = 0.3
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rankings", type=Path, required=True, help="file of K-wise rankings, K of 2 or more")
    parser.add_argument("--prompts", type=int, default=None, help="use the first so many prompts only")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/real_rankings.json"))
    args = parser.parse_args()
    started = time.process_time()
    rankings = read_rankings(str(args.rankings))[0][: args.prompts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [text for r in rankings for text in (r.prompt.messages[-1].content, *r.responses)]
        parameters = make_model(folder / "model", texts)
        report = train(folder, rankings)
    chosen = f" --prompts {args.prompts}" if args.prompts else ""
    results = {
        **provenance(f"python benchmarks/real_rankings.py --rankings {args.rankings.name}{chosen}"),
        "file": args.rankings.name,
        "sha256": sha256_of(args.rankings),
        "parameters": parameters,
        **report,
        "cpu_seconds": round(time.process_time() - started),
    }
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, results)
    print(json.dumps({key: value for key, value in results.items() if key != "reliability"}, indent=2))


def make_model(folder: Path, texts: list[str]) -> int:
    """A llama with random weights and a tokenizer of the texts; returns its number of parameters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **SIZES))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def train(folder: Path, rankings: list[Ranking]) -> dict[str, Any]:
    """SFT on the best responses and a reward model on the rankings; what the reward stage says of held-out prompts."""
    rng = random.Random(0)
    rows, best = [], []
    for ranking in rankings:
        question = ranking.prompt.messages[-1].content
        places = rng.sample(range(len(ranking.responses)), min(RESPONSES, len(ranking.responses)))
        responses, ranks = [ranking.responses[i] for i in places], [ranking.ranks[i] for i in places]
        rows.append({"prompt": question, "responses": responses, "ranks": ranks})
        best.append({"prompt": question, "completion": responses[ranks.index(min(ranks))]})
    write_jsonl(folder / "rankings.jsonl", rows)
    write_jsonl(folder / "demonstrations.jsonl", best)
    run, common = str(folder / "run"), {"device": "cpu", "validation_fraction": HELD_OUT, "batch_size": 8, **LIMITS}
    model = sft.train(
        SFTConfig(
            run=run,
            model=str(folder / "model"),
            quantization="none",
            demonstrations=str(folder / "demonstrations.jsonl"),
            epochs=1,
            learning_rate=3e-3,
            **LORA,
            **common,
        )
    )
    settings: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3}
    reward.train(RewardConfig(run=run, rankings=str(folder / "rankings.jsonl"), **settings, **common), model)
    found = find_stage(Path(run) / "reward", "reward").manifest["results"]
    return {"limits": LIMITS, "lora": LORA, "responses_per_prompt": RESPONSES, "reward": settings, **found}


if __name__ == "__main__":
    main()
