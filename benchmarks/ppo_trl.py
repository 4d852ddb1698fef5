"""TRL 1.12's half of ppo_against_trl.py: PPO with `trl.experimental.ppo`, in a process of its own; prints one JSON.

Run by ppo_against_trl.py, which puts that release first on PYTHONPATH and says there how TRL is set up, and why so.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from half import GPU, Clock, finish, resident_mib, run

RANK, ALPHA = 16, 32  # as lora_rlhf's defaults


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the iterations and of their parts, the tokens generated, peak memory."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    if trl.__version__ != "1.12.0":
        raise SystemExit(f"this is TRL {trl.__version__}; the last release with PPO is 1.12.0")
    before = resident_mib()
    folder = Path(args.folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    policy, value, reward = load(folder, "causal"), load(folder, "score"), load(folder, "score")
    adapt(value)
    if args.gradient_checkpointing:  # the trainer's own setting of that name is read by nobody
        policy.gradient_checkpointing_enable()
        value.gradient_checkpointing_enable()
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    watch(ppo_trainer, clock, tokenizer.pad_token_id)
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=args.micro_batch_size,
        gradient_accumulation_steps=args.batch_size // args.micro_batch_size,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=args.iterations * args.batch_size,
        local_rollout_forward_batch_size=args.rollout_batch_size,
        response_length=args.response_tokens,
        stop_token=None,  # every response has the full length
        temperature=1.0,
        kl_coef=0.05,
        learning_rate=1e-4,
        gradient_checkpointing=args.gradient_checkpointing,
        bf16=False,  # the models are in bfloat16 on a GPU; this would turn their norms to float32, but not what follows
        use_cpu=not GPU,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    prompts = json.loads((folder / "prompt_ids.json").read_text())
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # with PEFT: the policy's base without its adapter
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=lora,
        callbacks=[Ticks()],
    )
    clock.start()
    trainer.train()
    return finish(clock, before, args)


def load(folder: Path, kind: str) -> Any:
    """A causal model, or one with a scalar head, in NF4 as lora_rlhf holds its base."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    dtype = torch.bfloat16 if GPU else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    common = {"dtype": dtype, "quantization_config": quantization, "device_map": {"": 0} if GPU else {"": "cpu"}}
    if kind == "causal":
        return AutoModelForCausalLM.from_pretrained(folder / "model", **common)
    return AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, **common)


def adapt(value: Any) -> None:
    """LoRA on every linear layer of the value model, which the trainer itself gives to the policy alone."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", exclude_modules=["score"])
    inject_adapter_in_model(lora, value)
    for name, parameter in value.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))


def watch(ppo_trainer: Any, clock: Clock, pad: int) -> None:
    """Times generation and the update, and counts generated tokens, around the trainer's own functions."""
    generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    def timed_generation(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        begun = clock.now()
        sequences, logits = generate(model, queries, *rest)
        clock.rollout(clock.now() - begun, int((sequences[:, queries.shape[1] :] != pad).sum()))
        return sequences, logits

    def watched_forward(*inputs: Any) -> Any:
        if torch.is_grad_enabled():
            clock.update_begins()
        return forward(*inputs)

    ppo_trainer.batch_generation, ppo_trainer.forward = timed_generation, watched_forward


if __name__ == "__main__":
    run(measure, __doc__)
