"""A text classifier from a folder, for scorers: the probability that a text is at fault."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_rlhf.system.errors import UserError

HARMLESS_NAMES = ("non", "not", "no", "neutral", "safe", "ok", "clean", "true", "truthful", "label_0", "negative")
DEFAULT_MAX_TOKENS = 512  # of a text, if neither tokenizer nor model has a limit


class TextClassifier:
    """A sequence classifier with one output (the logit of a fault) or with two or more labels.

    Of several labels, those whose names mean that nothing is wrong (not_toxic, neutral, LABEL_0) count as fine, and the
    rest as faults. Labels that do not exclude each other (problem_type multi_label_classification, usual for toxicity)
    are all faults, and the most probable one counts. Only safetensors are read, and no code of the folder runs.
    """

    def __init__(self, folder: str, device: str) -> None:
        """UserError for a folder that holds no such model, or one with weights missing: its head would be random."""
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"{folder}: no config.json there; expected a folder with a sequence classifier")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder}: not a sequence classifier that can be opened ({error})") from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{folder}: {missing[0]} is missing, so it would judge at random; was it trained to classify?"
            )
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._model = model.to(self._device).eval()
        config = model.config
        self._has_independent_labels = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        names = [str(config.id2label[label]).lower() for label in range(config.num_labels)]
        self._fault_labels = [label for label, name in enumerate(names) if not name.startswith(HARMLESS_NAMES)]
        if not self._has_independent_labels and len(self._fault_labels) in (0, len(names)):
            raise UserError(
                f"{folder}: cannot tell which of its labels {', '.join(names)} mean that a text is at fault"
            )
        if self._tokenizer.pad_token_id is not None:
            config.pad_token_id = self._tokenizer.pad_token_id
        # some models use two positions for themselves
        positions = getattr(config, "max_position_embeddings", DEFAULT_MAX_TOKENS + 2) - 2
        self._max_tokens = min(self._tokenizer.model_max_length, positions)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str], batch_size: int) -> list[float]:
        """The probability that each text is at fault; 0 for a blank one. Long texts are cut at their end."""
        size = batch_size if self._tokenizer.pad_token_id is not None else 1
        order = sorted((row for row, text in enumerate(texts) if text.strip()), key=lambda row: -len(texts[row]))
        probabilities = [0.0] * len(texts)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for row, probability in zip(
                rows, self._batch_probabilities([texts[row] for row in rows]).tolist(), strict=True
            ):
                probabilities[row] = probability
        return probabilities

    def _batch_probabilities(self, texts: list[str]) -> Tensor:
        """The probability that each of B texts is at fault: (B,)."""
        batch = self._tokenizer(
            texts, padding=len(texts) > 1, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        logits: Tensor = self._model(**batch).logits.float()
        if self._has_independent_labels:
            return logits.sigmoid().amax(dim=1)
        return logits.softmax(dim=1)[:, self._fault_labels].sum(dim=1)
