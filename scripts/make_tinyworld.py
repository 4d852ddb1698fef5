"""Pretrains the tiny world's base model and its tokenizer from the scrape: about 30 minutes on one CPU core.

python scripts/make_tinyworld.py --to lora_rlhf/tinyworld/base
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_rlhf.tinyworld.scrape import Scrape

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] }}{% endif %}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the world is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(Scrape("tokenizer"), 20_000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def token_stream(tokenizer: PreTrainedTokenizerFast, seed: str, block: int, batch: int) -> Iterator[torch.Tensor]:
    """Endless (batch, block) tensors of documents one after the other, an end-of-text token behind each."""
    documents = iter(Scrape(seed))
    ids: list[int] = []
    while True:
        while len(ids) < batch * block:
            for encoded in tokenizer(list(itertools.islice(documents, 256)))["input_ids"]:
                ids += [*encoded, tokenizer.eos_token_id]
        yield torch.tensor(ids[: batch * block]).view(batch, block)
        ids = ids[batch * block :]


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Warm-up over 2 %, constant, then linear to zero over the last 40 %."""
    return min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.4 * steps))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, figures: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder for the model and tokenizer")
    parser.add_argument("--steps", type=int, default=2200, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--block", type=int, default=256, help="tokens a sequence")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--snapshot", type=int, default=0, help="keep a copy every so many steps (0: none)")
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = train_tokenizer(896)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, rope_theta=10_000.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    opts = optimizers(model, args.learning_rate)
    batches = token_stream(tokenizer, "train", args.block, args.batch)
    started, losses = time.monotonic(), []
    progress = tqdm(range(args.steps), desc="pretraining", mininterval=10)
    for step in progress:
        ids = next(batches)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.learning_rate * schedule(step, args.steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", refresh=False)
        if args.snapshot and (step + 1) % args.snapshot == 0:
            model.save_pretrained(args.to.with_name(f"{args.to.name}-{step + 1}"))
            tokenizer.save_pretrained(args.to.with_name(f"{args.to.name}-{step + 1}"))
    figures = {
        "steps": args.steps,
        "tokens": args.steps * args.batch * args.block,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(sum(losses[-50:]) / 50, 4),
        "seconds": round(time.monotonic() - started),
    }
    save(model, tokenizer, args.to, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
