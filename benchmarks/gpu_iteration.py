"""One PPO iteration of a real architecture with random weights in 4 bits: peak memory, and seconds of each part.

    python benchmarks/gpu_iteration.py --shape qwen2.5-1.5b --to benchmarks/results/gpu_iteration.json

Speed and memory do not depend on the values of the weights. `--cap-gib` limits what the process may take on the GPU, to
stand for a smaller card. The tokenizer is the tiny world's; its ids are a small part of the vocabulary, whose full
width is computed all the same.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import torch
from provenance import provenance
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import lora_rlhf
from lora_rlhf.config import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.model.memory import peak_gpu_gib, peak_rss_gib, quantized_storages
from lora_rlhf.run import write_json
from lora_rlhf.stages import ppo, reward, sft

SHAPES = {
    "qwen2.5-1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151_936, tie_word_embeddings=True, max_position_embeddings=4096,
    ),
    "tiny": Qwen2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=2048, tie_word_embeddings=True, max_position_embeddings=4096,
    ),
}  # fmt: skip
TINYWORLD = Path(lora_rlhf.__file__).parent / "tinyworld" / "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-1.5b")
    parser.add_argument(
        "--iterations", type=int, default=3, help="at least 2: the first one warms up, of the rest the median counts"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="responses per iteration")
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--cap-gib", type=float, help="most GPU memory that this process may take")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/gpu_iteration.json"))
    args = parser.parse_args()
    if args.cap_gib and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.cap_gib * 2**30 / total))
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(args, Path(scratch))
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, results)
    print(json.dumps(results, indent=2))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """All three stages on a random model; SFT and reward are one step each, PPO is measured."""
    _make_model(args.shape, folder / "model")
    _make_data(folder, args.prompt_words, args.batch_size)
    common = {
        "run": str(folder / "run"),
        "micro_batch_size": args.micro_batch_size,
        "generation_batch_size": args.batch_size,
        "max_prompt_tokens": 2 * args.prompt_words,
        "max_response_tokens": args.response_tokens,
        "gradient_checkpointing": True,
    }
    demonstrations, rankings = str(folder / "demonstrations.jsonl"), str(folder / "rankings.jsonl")
    first = SFTConfig(
        model=str(folder / "model"),
        demonstrations=demonstrations,
        epochs=1,
        batch_size=args.micro_batch_size,
        validation_fraction=0.0,
        **common,
    )
    model = sft.train(first)
    model = reward.train(RewardConfig(rankings=rankings, validation_fraction=0.0, **common), model)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ppo.train(
        PPOConfig(
            prompts=demonstrations,
            iterations=args.iterations,
            batch_size=args.batch_size,
            minibatch_size=args.batch_size,
            num_epochs=1,
            **common,
        ),
        model,
    )
    lines = (folder / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][1:]  # without the iteration that warms up
    return {
        **provenance(f"python benchmarks/gpu_iteration.py --shape {args.shape}"),
        **({"hardware": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
        "shape": args.shape,
        "batch_size": args.batch_size,
        "micro_batch_size": args.micro_batch_size,
        "response_tokens": args.response_tokens,
        "cap_gib": args.cap_gib,
        "peak_gpu_gib": round(peak_gpu_gib(), 3),
        "peak_rss_gib": round(peak_rss_gib(), 3),
        "base_storages": quantized_storages(),
        "seconds_per_iteration": {
            part: round(statistics.median(row[f"time/{part}"] for row in rows), 3)
            for part in ("rollout_s", "score_s", "update_s")
        },
        "mean_length": rows[-1]["rollout/length"],
    }


def _make_model(shape: str, folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    config = SHAPES[shape]
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        Qwen2ForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(dtype)
    tokenizer.save_pretrained(folder)


def _make_data(folder: Path, prompt_words: int, count: int) -> None:
    rng = random.Random(0)
    words = "fox owl barn mill river brown black bread honey Anna Tom kite drum bell".split()

    def text(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length))

    write_jsonl(
        folder / "demonstrations.jsonl", [{"prompt": text(prompt_words), "completion": text(30)} for _ in range(count)]
    )
    rankings = [
        {"prompt": text(prompt_words), "responses": [text(30), text(30), text(30), text(30)], "ranks": [1, 2, 3, 4]}
        for _ in range(8)
    ]
    write_jsonl(folder / "rankings.jsonl", rankings)


if __name__ == "__main__":
    main()
