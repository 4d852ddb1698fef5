"""The losses of TRL's DPOTrainer and KTOTrainer, on roles of the shared model and on tokens of our own encoder."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig as PairArguments
from trl import DPOTrainer, KTOTrainer
from trl import KTOConfig as VoteArguments

from lora_rlhf.configs.stages import DPOConfig
from lora_rlhf.data.preferences import Rows, to_dataset
from lora_rlhf.data.template import copy_with_pad
from lora_rlhf.model.forward import text_logprobs
from lora_rlhf.model.precision import expected_rounding, largest_difference
from lora_rlhf.model.role_view import RoleView
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

ROLE, REFERENCE = "dpo", "reference"


class _TokenizedRows:
    """For TRL's trainers: rows that are tokenized already, and no report of this run to anybody."""

    def _prepare_dataset(self, dataset: Any, *_arguments: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        pass


class _Pairs(_TokenizedRows, DPOTrainer):
    """DPO on pairs of our tokens."""


class _Votes(_TokenizedRows, KTOTrainer):
    """KTO on votes of our tokens."""


class TRLLoss:
    """The loss of a batch, with gradients for the policy role, and TRL's figures of it.

    TRL's trainer is made and asked for losses, never to train: the steps are those of the other stages.
    """

    def __init__(self, config: DPOConfig, model: SharedModel, folder: Path, example: Rows) -> None:
        self._policy, self._reference = RoleView(model, ROLE), RoleView(model, REFERENCE)
        common = {
            **{"output_dir": str(folder), "beta": config.beta, "max_length": None, "seed": config.seed},
            **{"report_to": "none", "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False},
            "use_cpu": model.device.type == "cpu",
        }
        arguments: PairArguments | VoteArguments
        with warnings.catch_warnings():
            # transformers renames a setting that TRL still has under its old name
            warnings.filterwarnings("ignore", message="`gradient_checkpointing`", category=FutureWarning)
            if config.method == "dpo":
                weights = list(config.loss_weights) or None
                losses = {"loss_type": list(config.losses), "loss_weights": weights}
                arguments = PairArguments(**common, **losses, label_smoothing=config.label_smoothing)
            else:
                share = {"desirable_weight": config.desirable_weight, "undesirable_weight": config.undesirable_weight}
                arguments = VoteArguments(**common, **share, loss_type=config.losses[0])
        arguments._n_gpu = min(1, arguments.n_gpu)  # one base, one card: TRL would wrap the view for all that it sees
        self._trainer = (_Pairs if config.method == "dpo" else _Votes)(
            model=self._policy,
            ref_model=self._reference,
            args=arguments,
            train_dataset=to_dataset(example),
            processing_class=copy_with_pad(model.tokenizer),
        )
        self._trainer.callback_handler.callbacks.clear()  # they print
        self._require_own_logits(model, example)

    @torch.no_grad()
    def _require_own_logits(self, model: SharedModel, rows: Rows) -> None:
        """UserError unless TRL's LM head gives the log-probabilities that the model itself gives."""
        inputs = self._trainer.data_collator(rows)
        ids, mask = inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device)
        self._reference.size = len(ids)
        output = self._reference(ids, mask, labels=ids.masked_fill(mask == 0, -100), fused_lm_head=True)
        if "log_probs" not in output:
            return  # an older TRL, which takes the model's logits
        with model.role(REFERENCE):
            difference = largest_difference(output["log_probs"], text_logprobs(model, ids, mask.bool()))
        if difference > (allowed := expected_rounding(model).few_tokens):
            raise UserError(
                f"TRL reads the LM head of {model.base.spec.name!r} otherwise than the model does: log-probabilities "
                f"differ by {difference:.3g}, at most {allowed:g} is rounding; dpo cannot train this model, ppo can"
            )

    def __call__(self, rows: Rows, size: int) -> tuple[Tensor, dict[str, float]]:
        """The mean loss of rows, read in micro-batches of `size` sequences, and TRL's figures of the same rows."""
        self._policy.size = self._reference.size = size
        self._policy.train()
        inputs = self._trainer.data_collator(rows)
        device = self._trainer.accelerator.device
        loss = self._trainer.compute_loss(self._policy, {name: value.to(device) for name, value in inputs.items()})
        figures: dict[str, float] = {}
        self._trainer.log(figures)  # adds the figures since the last call, and forgets them
        return loss, figures
