"""Stage 1, supervised fine-tuning: TRL's SFTTrainer on the shared base's `sft` adapter (InstructGPT, section 3.5)."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig as TrainerConfig
from trl import SFTTrainer

from lora_rlhf.config import SFTConfig
from lora_rlhf.data.batches import packed_sft_batch, pad_left, pad_right, sft_batch
from lora_rlhf.data.encode import EncodedExample, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration
from lora_rlhf.data.sources import Source, every_turn
from lora_rlhf.data.spool import spool_examples
from lora_rlhf.data.template import ensure_template, pad_id, stop_ids
from lora_rlhf.errors import UserError
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import Sequences, response_scores
from lora_rlhf.model.generate import generate
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.packing import require_no_leak
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.run import ADAPTER, StageFolder, find_stage, has_stage
from lora_rlhf.settings import check
from lora_rlhf.stages.rows import Split, limits_of, report_refusals, watched
from lora_rlhf.stages.session import FLOOR, bring, require_context, seed_everything

JUDGE = "judge"  # the role of the reward model of an earlier round; `reward` is for the one that this run will train
SELECTION_PROMPTS = 64  # validation prompts that the reward model judges an epoch by
ROWS_AT_ONCE = 1000  # of the trainer's table, in memory while it is written


def train(config: SFTConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `sft` adapter on demonstrations, loss on the response alone, and keeps the best epoch."""
    check(config)
    folder = StageFolder.check_free(config, "sft")
    source: Source[Demonstration] = Source(config.demonstrations, "demonstrations", config.format, config.strict)
    next(iter(source))  # a file that cannot be used is said before the model is loaded
    model = model or _load(config)
    require_context(model, config)
    ensure_template(model.tokenizer)
    if config.packing:
        require_no_leak(model)
    split = _encode(config, model, source)
    training, validation = split.train, split.validation

    seed_everything(config.seed)
    settings = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout, use_rslora=config.use_rslora)
    model.add_role("sft", settings)
    recorder = _Recorder(model, folder, _selector(config, model, validation))
    folder.begin(describe_base(model), {}, {"demonstrations": config.demonstrations})
    with model.role("sft", training=True):
        _run_trainer(config, model, training, validation, recorder)
    if recorder.best is not None:
        model.load_adapter_state("sft", recorder.best)
    model.save_role("sft", folder.path / ADAPTER)
    folder.finish(
        {
            "demonstrations": len(training),
            "validation": len(validation),
            "loss": recorder.losses[-1] if recorder.losses else None,
            "selected_epoch": recorder.best_epoch,
            "selected_by": recorder.criterion,
            "epochs": recorder.epochs,
        }
    )
    return model


def _load(config: SFTConfig) -> SharedModel:
    spec = BaseSpec(config.model, config.quantization, config.compute_dtype, config.trust_remote_code)
    model = SharedModel(load_base(spec, config.device))
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _encode(config: SFTConfig, model: SharedModel, source: Source[Demonstration]) -> Split[EncodedExample]:
    """Training and validation examples; a prompt is never in both."""
    split = Split(config.validation_fraction, spool_examples(), spool_examples())
    refused, limits = RefusedRows(config.strict), limits_of(config)
    for demonstration in watched(every_turn(source) if config.every_turn else source):
        example = encode_demonstration(model.tokenizer, demonstration, limits, refused)
        if example is not None:
            split.add(demonstration.prompt.opening, example)
    refused.extend(source.refused)
    if not split.train:
        raise UserError(
            f"{config.demonstrations}: none of its {source.read} rows is left to train on: {len(split.validation)} are "
            f"held out by validation_fraction {config.validation_fraction:g}, the others were refused\n"
            f"{refused.summary()}"
        )
    report_refusals(config.demonstrations, refused)
    split.require_both(config.demonstrations)
    return split


def _run_trainer(
    config: SFTConfig,
    model: SharedModel,
    training: Sequence[EncodedExample],
    validation: Sequence[EncodedExample],
    recorder: "_Recorder",
) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # its tables, and a folder that the trainer insists on
        arguments = TrainerConfig(
            output_dir=scratch,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.micro_batch_size,
            per_device_eval_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": FLOOR},
            train_sampling_strategy="group_by_length",
            activation_checkpointing=config.gradient_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False},
            eval_strategy="epoch" if validation else "no",
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            bf16=False,  # the base computes in its own dtype; the adapters stay float32
            seed=config.seed,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            dataloader_pin_memory=model.device.type == "cuda",
        )
        before = model.adapter_state("sft")
        trainer = SFTTrainer(
            model=model.peft,
            args=arguments,
            train_dataset=_dataset(training, Path(scratch) / "training.arrow"),
            eval_dataset=_dataset(validation, Path(scratch) / "validation.arrow") if validation else None,
            processing_class=model.tokenizer,
            data_collator=_collator(config, model),
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        _restore_float32(model, before)
        trainer.train()


def _dataset(examples: Sequence[EncodedExample], path: Path) -> Dataset:
    """The examples as a table on disk, which the trainer maps into memory piece by piece."""
    ids = pa.list_(pa.int32())
    schema = pa.schema([("prompt_ids", ids), ("response_ids", ids), ("length", pa.int32())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as table:
        rows = iter(examples)
        while part := list(itertools.islice(rows, ROWS_AT_ONCE)):
            prompts, responses = [row.prompt_ids for row in part], [row.response_ids for row in part]
            lengths = [len(row.prompt_ids) + len(row.response_ids) for row in part]
            columns = zip((prompts, responses, lengths), schema.types, strict=True)
            table.write_batch(pa.record_batch([pa.array(*column) for column in columns], schema=schema))
    return Dataset.from_file(str(path))


def _collator(config: SFTConfig, model: SharedModel) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """From rows of the table to a batch: the same that `lora-rlhf inspect` shows."""
    pad = pad_id(model.tokenizer)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        examples = [EncodedExample(row["prompt_ids"], row["response_ids"]) for row in rows]
        return packed_sft_batch(examples) if config.packing else sft_batch(examples, pad)

    return collate


def _restore_float32(model: SharedModel, state: dict[str, Tensor]) -> None:
    """TRL rounds adapters on a 4-bit base to bfloat16, in which small updates vanish: undo it, bit for bit."""
    for _, parameter in model.named_parameters_of("sft"):
        parameter.data = parameter.data.float()
    model.load_adapter_state("sft", state)


def _selector(config: SFTConfig, model: SharedModel, validation: Sequence[EncodedExample]) -> "_RewardSelector | None":
    """How epochs are compared where the run has a reward model; None: by validation loss."""
    available = has_stage(config.run, "reward")
    if config.select_by == "reward" and not available:
        find_stage(f"{config.run}/reward", "reward")  # says what is missing
    if not available or config.select_by == "loss" or not validation:
        return None
    bring(model, JUDGE, find_stage(f"{config.run}/reward", "reward"))
    judged = itertools.islice(validation, SELECTION_PROMPTS)
    return _RewardSelector(model, config, [example.prompt_ids for example in judged])


@dataclass
class _RewardSelector:
    """Mean reward score of one greedy response to each validation prompt (InstructGPT, section 3.5)."""

    model: SharedModel
    config: SFTConfig
    prompts: list[list[int]]

    @torch.no_grad()
    def __call__(self) -> float:
        tokenizer = self.model.tokenizer
        with self.model.role("sft"):
            answers = generate(
                self.model,
                self.prompts,
                max_new_tokens=self.config.max_response_tokens,
                temperature=0.0,
                stop_ids=stop_ids(tokenizer),
                generator=torch.Generator().manual_seed(self.config.seed),
                batch_size=self.config.generation_batch_size,
            )
        pad, size = pad_id(tokenizer), self.config.micro_batch_size
        total = 0.0
        with self.model.role(JUDGE):
            for start in range(0, len(self.prompts), size):
                prompts = pad_left(self.prompts[start : start + size], pad)
                responses = pad_right([group[0].ids for group in answers[start : start + size]], pad)
                batch = Sequences(*prompts, *responses).to(self.model.device)
                total += float(response_scores(self.model, batch).sum())
        return total / len(self.prompts)


@dataclass
class _Recorder(TrainerCallback):
    """Progress, metrics, and the best epoch's adapter."""

    model: SharedModel
    folder: StageFolder
    selector: _RewardSelector | None
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int | None = None
    bar: Any = None

    @property
    def criterion(self) -> str:
        return "loss" if self.selector is None else "reward"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="sft", unit="step")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.bar.update(state.global_step - self.bar.n)
            self.bar.set_postfix(loss=f"{self.losses[-1]:.3f}")
            metrics = {"sft/loss": self.losses[-1], "sft/grad_norm": float(logs.get("grad_norm", 0.0))}
            self.folder.log(state.global_step, {**metrics, "sft/learning_rate": float(logs["learning_rate"])})

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        figures = {"epoch": round(float(state.epoch)), "loss": float(metrics["eval_loss"])}
        if self.selector is not None:
            figures["reward"] = self.selector()
        self.folder.log(state.global_step, {f"sft/validation_{name}": value for name, value in figures.items()})
        better = min if self.selector is None else max
        if not self.epochs or better(figures, *self.epochs, key=lambda row: row[self.criterion]) is figures:
            self.best, self.best_epoch = self.model.adapter_state("sft"), int(figures["epoch"])
        self.epochs.append(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
