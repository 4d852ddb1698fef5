"""A text classifier from a folder, for scorers: the probability that a text is at fault."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_rlhf.system.errors import UserError

HARMLESS_NAMES = ("non", "not", "no", "neutral", "safe", "ok", "clean", "true", "truthful", "label_0", "negative")
LONGEST = 512  # tokens of a text where neither tokenizer nor model says what it can read


class Classifier:
    """A sequence classifier with one output (a logit of being at fault) or two or more labels.

    Of several labels, those whose names say that nothing is wrong (not_toxic, neutral, LABEL_0) are counted as fine,
    and the rest as at fault. Labels that may hold together (problem_type multi_label_classification, as toxicity has
    them) are all faults, and the likeliest counts. Only safetensors are read, and no code of the folder's runs.
    """

    def __init__(self, folder: str, device: str) -> None:
        """UserError for a folder that holds no such model, or one with weights missing: its head would be random."""
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"{folder}: no config.json there; expected a folder with a sequence classifier")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder}: not a sequence classifier that can be opened ({error})") from error
        if missing := sorted(loaded["missing_keys"]):
            raise UserError(
                f"{folder}: {missing[0]} is missing, so it would judge at random; was it trained to classify?"
            )
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._model = model.to(self._device).eval()
        config = model.config
        self._each = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        names = [str(config.id2label[place]).lower() for place in range(config.num_labels)]
        self._at_fault = [place for place, name in enumerate(names) if not name.startswith(HARMLESS_NAMES)]
        if not self._each and len(self._at_fault) in (0, len(names)):
            raise UserError(
                f"{folder}: cannot tell which of its labels {', '.join(names)} mean that a text is at fault"
            )
        if self._tokenizer.pad_token_id is not None:
            config.pad_token_id = self._tokenizer.pad_token_id
        most = getattr(config, "max_position_embeddings", LONGEST + 2) - 2  # some models keep two for themselves
        self._longest = min(self._tokenizer.model_max_length, most)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str], batch_size: int) -> list[float]:
        """The probability of each text to be at fault; a blank one is not. Long texts are cut at their end."""
        size = batch_size if self._tokenizer.pad_token_id is not None else 1
        said = sorted((place for place, text in enumerate(texts) if text.strip()), key=lambda place: -len(texts[place]))
        found = [0.0] * len(texts)
        for start in range(0, len(said), size):
            places = said[start : start + size]
            for place, probability in zip(places, self._of([texts[place] for place in places]).tolist(), strict=True):
                found[place] = probability
        return found

    def _of(self, texts: list[str]) -> Tensor:
        """(B,)."""
        batch = self._tokenizer(
            texts, padding=len(texts) > 1, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        logits: Tensor = self._model(**batch).logits.float()
        if self._each:
            return logits.sigmoid().amax(dim=1)
        return logits.softmax(dim=1)[:, self._at_fault].sum(dim=1)
