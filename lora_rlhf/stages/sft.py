"""Stage 1, supervised fine-tuning: the `sft` adapter on demonstrations (InstructGPT, section 3.5)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.losses import lm_loss
from lora_rlhf.configs.stages import SFTConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.batches import IGNORED_LABEL, packed_sft_batch, response_batch, sft_batch
from lora_rlhf.data.encode import EncodedExample, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows, pluralize
from lora_rlhf.data.schema import Demonstration
from lora_rlhf.data.sources import Source, every_turn
from lora_rlhf.data.spool import Spool, make_example_spool
from lora_rlhf.data.template import pad_id
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.forward import Sequences, counted_logprobs, response_scores
from lora_rlhf.model.kernels import prepare_base
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.packing import require_no_leak
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.model.targets import note_without_adapter
from lora_rlhf.runs.folder import ADAPTER, StageFolder, find_stage, has_stage
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.rows import Split, encode_source, length_limits, report_refusals, source_of, watched
from lora_rlhf.stages.sampler import Sampler
from lora_rlhf.stages.samples import FIXED, sft_samples
from lora_rlhf.stages.session import (
    choose_run_template,
    cosine,
    epochs_of_batches,
    fixed_prompt_indices,
    load_parent_role,
    log,
    require_context,
    seed_everything,
    warn_of_few_steps,
)
from lora_rlhf.stages.trainer import NotFinite, RoleOptimizer, Trainer
from lora_rlhf.system import workers

SELECTOR = "selector"  # the role of an earlier round's reward model; `reward` is the one that this run will train
SELECTION_PROMPTS = 64  # validation prompts that the reward model judges an epoch by
EPS = 1e-8  # AdamW's usual one: nothing here is normalised by a noisy advantage, as it is in PPO
BEST = "best."  # how the best epoch's tensors begin in a checkpoint


def train(config: SFTConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `sft` adapter on demonstrations, loss on the response alone, and keeps the best epoch."""
    check(config)
    with StageFolder.open(config, "sft") as folder:
        source: Source[Demonstration] = source_of(config, config.demonstrations, "demonstrations")
        source.require_first()
        model = model or _load_base(config)
        prepare_base(model, config.dequantize, config.attn_implementation, config.fused_kernels)
        require_context(model, config)
        settings = _lora_settings(config)
        without_adapter = model.share_without_adapter(settings)
        if note := note_without_adapter(without_adapter, settings.targets):
            log.warning("%s", note)
        choose_run_template(config, folder, model)
        if config.packing:
            require_no_leak(model)
        split = _encode_demonstrations(config, model, source)

        rng = seed_everything(config.seed)
        model.add_role("sft", settings)
        selector = _make_selector(config, model, split.validation)
        folder.begin(describe_base(model), {}, {"demonstrations": config.demonstrations})
        order = epochs_of_batches(len(split.train), config.batch_size, config.epochs, rng)
        training = _Training(config, model, folder, split.train, split.validation, order, selector)
        training.run()
        if training.best is not None:
            model.load_adapter_state("sft", training.best)
        workers.from_main(lambda: model.save_role("sft", folder.path / ADAPTER))
        folder.finish(training.results() | {"share_without_adapter": round(without_adapter, 4)}, training.outcome())
        warn_of_few_steps(len(order))
    return model


def _load_base(config: SFTConfig) -> SharedModel:
    """Loads the base model as the configuration says."""
    spec = BaseSpec(config.model, config.quantization, config.compute_dtype, config.trust_remote_code)
    model = SharedModel(load_base(spec, workers.device_of_process(config.device)))
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _lora_settings(config: SFTConfig) -> LoraSettings:
    return LoraSettings(
        config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, use_rslora=config.use_rslora
    )


def _encode_demonstrations(
    config: SFTConfig, model: SharedModel, source: Source[Demonstration]
) -> Split[EncodedExample]:
    """Training and validation examples; a prompt is never in both."""
    split = Split(config.validation_fraction, make_example_spool(), make_example_spool())
    refused, limits = RefusedRows(config.strict), length_limits(config)
    encode_source(
        source,
        lambda row, refused: encode_demonstration(model.tokenizer, row, limits, refused, config.train_empty_thoughts),
        lambda row, example: split.add(row.prompt.opening, example),
        refused,
        watched(every_turn(source) if config.every_turn else source),
    )
    split.require_some(config.demonstrations, source.read, refused)
    report_refusals(config.demonstrations, refused)
    split.require_both(config.demonstrations)
    return split


@dataclass
class _Training:
    """The steps, and what they carry from one to the next."""

    config: SFTConfig
    model: SharedModel
    folder: StageFolder
    examples: Spool[EncodedExample]
    validation: Spool[EncodedExample]
    order: list[list[int]]  # the examples of each step, all epochs one after another
    selector: "_RewardSelector | None"
    step: int = 0
    loss: float | None = None
    epochs: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int | None = None

    def run(self) -> None:
        config, steps, micro_batch = self.config, len(self.order), AutoBatch.for_training(self.config)
        optimizer = RoleOptimizer(config, self.model, "sft", config.learning_rate, micro_batch, EPS)
        trainer = Trainer(config, self.model, self.folder, {"sft": optimizer}, self._state_to_save)
        with trainer.running():
            optimizer.rehearse(lambda size: self._accumulate([self.examples.longest] * size, size))
            if (checkpoint := trainer.resume()) is not None:
                self._restore(checkpoint.state, checkpoint.tensors)
            with tqdm(total=steps, initial=self.step, desc="sft", unit="step") as bar:
                while self.step < steps:
                    self._take_step(optimizer, trainer)
                    bar.update()
                    bar.set_postfix(loss=f"{self.loss:.3f}")
                    if self.step % (steps // config.epochs) == 0:
                        self._end_epoch(trainer, micro_batch)
                    trainer.save_or_stop(self.step, steps)

    def _take_step(self, optimizer: RoleOptimizer, trainer: Trainer) -> None:
        """One optimizer step; Stopped, with the batch written to failure.json, for a number that is not finite."""
        rows = [self.examples[index] for index in self.order[self.step]]
        rate = optimizer.set_learning_rate(cosine(self.step, len(self.order)))
        try:
            figures = optimizer.step(lambda size: self._accumulate(rows, size))
        except NotFinite as error:
            advice = f"Lower --learning_rate ({self.config.learning_rate:g}) and go on with --allow_changes"
            raise trainer.write_failure(
                self.step + 1, error, [self._failure_row(row) for row in rows], advice
            ) from error
        optimizer.require_moved()
        self.step += 1
        self.loss = figures["loss"]
        row = {"sft/loss": figures["loss"], "sft/grad_norm": figures["grad_norm"], "sft/learning_rate": rate}
        trainer.log(self.step, row)

    def _accumulate(self, rows: Sequence[EncodedExample], size: int) -> dict[str, float]:
        """Forward and backward over this process's share of a batch; the loss is a mean over all its answer tokens."""
        num_tokens = sum(len(row.response_ids) for row in rows)
        total = 0.0
        for group in _split_into_micro_batches(workers.share_of_process(rows), size):
            loss = _answer_loss(self.config, self.model, group, num_tokens)
            self.model.backward(loss)
            total += float(loss.detach())
        return {"loss": total}

    def _end_epoch(self, trainer: Trainer, micro_batch: AutoBatch) -> None:
        """Records answers to fixed prompts, and measures the epoch where something is held out."""
        examples = self.validation or self.examples
        fixed = [examples[index] for index in fixed_prompt_indices(examples, FIXED)]
        figures, rows = sft_samples(self.config, self.model, fixed)
        trainer.log(self.step, figures)
        self.folder.sample(self.step, rows)
        if self.validation:
            self._compare_epoch(trainer, micro_batch)

    def _compare_epoch(self, trainer: Trainer, micro_batch: AutoBatch) -> None:
        """Measures the epoch on held-out rows, and keeps its adapter if it is the best so far."""

        def validate(size: int) -> float:
            return _validation_loss(self.config, self.model, self.validation, size)

        loss = micro_batch.run(validate, "validation")
        figures = {"epoch": len(self.epochs) + 1, "loss": loss}
        if self.selector is not None:
            figures["reward"] = self.selector()
        trainer.log(self.step, {f"sft/validation_{name}": value for name, value in figures.items()})
        better = min if self.selector is None else max
        if not self.epochs or better(figures, *self.epochs, key=lambda row: row[self.criterion]) is figures:
            self.best, self.best_epoch = self.model.adapter_state("sft"), int(figures["epoch"])
        self.epochs.append(figures)

    @property
    def criterion(self) -> str:
        """What epochs are compared by."""
        return "loss" if self.selector is None else "reward"

    def results(self) -> dict[str, Any]:
        """What the manifest says of the training."""
        return {
            "demonstrations": len(self.examples),
            "validation": len(self.validation),
            "steps": self.step,
            "loss": self.loss,
            "selected_epoch": self.best_epoch,
            "selected_by": self.criterion,
            "epochs": self.epochs,
        }

    def outcome(self) -> str:
        """How the training ended, in a few words."""
        steps = pluralize(self.step, "step")
        if self.best_epoch is None:
            return f"{steps}, loss {self.loss:.3f} nats a token in the last one; no row was held out"
        loss, of = self.epochs[self.best_epoch - 1]["loss"], len(self.epochs)
        return f"{steps}, validation loss {loss:.3f} nats a token (epoch {self.best_epoch} of {of}, which is kept)"

    def _state_to_save(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        state = {"step": self.step, "loss": self.loss, "epochs": self.epochs, "best_epoch": self.best_epoch}
        return state, {f"{BEST}{name}": value for name, value in (self.best or {}).items()}

    def _restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continues from a checkpoint: step, loss, epochs, and the best epoch's adapter."""
        self.step, self.loss = state["step"], state["loss"]
        self.epochs, self.best_epoch = state["epochs"], state["best_epoch"]
        best = {name.removeprefix(BEST): value for name, value in tensors.items() if name.startswith(BEST)}
        self.best = best or None

    def _failure_row(self, row: EncodedExample) -> dict[str, Any]:
        decode = self.model.tokenizer.decode
        return {"prompt": decode(row.context_ids), "response": decode(row.response_ids), **vars(row)}


def _split_into_micro_batches(rows: Sequence[EncodedExample], size: int) -> list[list[EncodedExample]]:
    """Micro-batches of like length, which waste no padding; the longest first."""
    ordered = sorted(rows, key=lambda row: -len(row.context_ids) - len(row.response_ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _answer_loss(config: SFTConfig, model: SharedModel, rows: Sequence[EncodedExample], num_tokens: int) -> Tensor:
    """-sum of the answers' log-probabilities / num_tokens, on the batch that `lora-rlhf inspect` shows."""
    batch = packed_sft_batch(rows) if config.packing else sft_batch(rows, pad_id(model.tokenizer))
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = batch.pop("labels")
    logprobs = counted_logprobs(model, labels, labels != IGNORED_LABEL, **batch)
    return lm_loss(logprobs, torch.ones_like(logprobs, dtype=torch.bool), num_tokens)


@torch.no_grad()
def _validation_loss(config: SFTConfig, model: SharedModel, examples: Spool[EncodedExample], size: int) -> float:
    """Mean over all answer tokens."""
    totals = {"loss": 0.0, "tokens": 0.0}
    with model.role("sft"):
        indices = iter(workers.share_of_process(range(len(examples))))
        while rows := [examples[index] for index in itertools.islice(indices, size)]:
            totals["loss"] += float(_answer_loss(config, model, rows, 1))
            totals["tokens"] += sum(len(row.response_ids) for row in rows)
    totals = workers.sum_all(totals)
    return totals["loss"] / totals["tokens"]


def _make_selector(
    config: SFTConfig, model: SharedModel, validation: Sequence[EncodedExample]
) -> "_RewardSelector | None":
    """How epochs are compared where the run has a reward model; None: by validation loss."""
    available = has_stage(config.run, "reward")
    if config.select_by == "reward" and not available:
        find_stage(f"{config.run}/reward", "reward")  # says what is missing
    if not available or config.select_by == "loss" or not validation:
        return None
    load_parent_role(model, SELECTOR, find_stage(f"{config.run}/reward", "reward"))
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
        seeds = [[0]] * len(self.prompts)  # of no effect: the most probable token is taken
        groups = Sampler(self.config, self.model, "sft", temperature=0.0).sample(
            self.prompts, seeds, "the answers that an epoch is judged by"
        )
        answers = [group[0].ids for group in groups]
        pad, size = pad_id(self.model.tokenizer), self.config.micro_batch_size
        total = 0.0
        with self.model.role(SELECTOR):
            for start in range(0, len(self.prompts), size):
                rows = slice(start, start + size)
                batch = Sequences(*response_batch(self.prompts[rows], answers[rows], pad)).to(self.model.device)
                total += float(response_scores(self.model, batch).sum())
        return total / len(self.prompts)
