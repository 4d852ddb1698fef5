"""The SFT loop against TRL's SFTTrainer on the same batches: the same loss, gradient norm and adapter."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig as TrainerConfig
from trl import SFTTrainer

from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.data.batches import sft_batch
from lora_rlhf.data.encode import EncodedExample, Limits, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.sources import Source
from lora_rlhf.data.template import ensure_template, pad_id
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.stages import sft
from lora_rlhf.stages.session import epochs_of_batches, seed_everything
from tests.support.stages import LIMITS, Models, open_model, rows_of

pytestmark = pytest.mark.slow

EPOCHS, BATCH = 2, 6


class _Log(TrainerCallback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.rows.append(logs)


def test_sft_is_what_trl_makes_of_the_same_batches(tiny_model: Models, data: Path, tmp_path: Path) -> None:
    settings = SFTConfig(
        run=str(tmp_path / "run"),
        model=str(tiny_model("llama")),
        lora_rank=4,
        learning_rate=2e-3,
        demonstrations=str(data / "demonstrations.jsonl"),
        batch_size=BATCH,
        micro_batch_size=3,
        epochs=EPOCHS,
        validation_fraction=0.0,
        **LIMITS,
    )
    ours = sft.train(settings).adapter_state("sft")

    model = open_model(tiny_model("llama"))
    ensure_template(model.tokenizer)
    rng = seed_everything(settings.seed)
    model.add_role("sft", LoraSettings(rank=4, alpha=settings.lora_alpha))
    examples = [
        example
        for row in Source(settings.demonstrations, "demonstrations")
        if (example := encode_demonstration(model.tokenizer, row, Limits(48, 24), RefusedRows()))
    ]
    order = [place for batch in epochs_of_batches(len(examples), BATCH, EPOCHS, rng) for place in batch]
    theirs = _by_trl(model, [examples[place] for place in order], settings, tmp_path)
    rows = [row for row in rows_of(settings.run, "sft") if "sft/loss" in row]
    assert len(rows) == len(theirs) == EPOCHS * len(examples) // BATCH
    for mine, their in zip(rows, theirs, strict=True):
        assert mine["sft/loss"] == pytest.approx(their["loss"], abs=1e-4)  # which it rounds to four digits
        assert mine["sft/grad_norm"] == pytest.approx(their["grad_norm"], rel=1e-3)
        assert mine["sft/learning_rate"] == pytest.approx(their["learning_rate"], rel=1e-6)
    for name, value in model.adapter_state("sft").items():
        # Adam's first steps are the gradient's sign: compare where it is not rounding that decides it
        assert (value - ours[name]).abs().median() < 1e-6, name
        assert (value - ours[name]).abs().max() < 1e-2, name


def _by_trl(model, examples: list[EncodedExample], settings: SFTConfig, folder: Path) -> list[dict[str, float]]:
    before, log = model.adapter_state("sft"), _Log()
    arguments = TrainerConfig(
        **{"output_dir": str(folder / "trl"), "num_train_epochs": 1, "gradient_accumulation_steps": 2},
        **{"per_device_train_batch_size": 3, "learning_rate": settings.learning_rate, "weight_decay": 0.0},
        **{"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        **{"train_sampling_strategy": "sequential", "activation_checkpointing": False, "save_strategy": "no"},
        **{"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False},
        **{"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False},
    )
    rows = Dataset.from_list([vars(example) for example in examples])
    with model.role("sft", training=True):
        trainer = SFTTrainer(
            model=model.peft,
            args=arguments,
            train_dataset=rows,
            processing_class=model.tokenizer,
            data_collator=lambda batch: sft_batch([EncodedExample(**row) for row in batch], pad_id(model.tokenizer)),
            callbacks=[log],
        )
        for _, parameter in model.named_parameters_of("sft"):
            parameter.data = parameter.data.float()  # TRL rounds adapters on a 4-bit base to bfloat16
        model.load_adapter_state("sft", before)
        trainer.train()
    assert not torch.equal(
        *(torch.cat([v.flatten() for v in s.values()]) for s in (before, model.adapter_state("sft")))
    )
    return log.rows
