"""A classifier's probabilities are those of its logits, one text at a time; what would judge at random is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import expit, softmax
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lora_rlhf.model.text_classifier import TextClassifier
from lora_rlhf.system.errors import UserError

TEXTS = [
    "The boat is small.",
    "A question.",
    "The sailors are brave, and the river is wide; thank you for the bread!",
]


@pytest.fixture
def make(tmp_path: Path, tiny_model):
    """make(labels, **config) -> the folder of a tiny random Llama with so many labels."""

    def folder(labels: int, **config: object) -> str:
        source = tiny_model("llama")
        torch.manual_seed(labels)
        settings = AutoConfig.from_pretrained(source, num_labels=labels, **config)
        AutoModelForSequenceClassification.from_config(settings).save_pretrained(tmp_path)
        for file in source.glob("tokenizer*"):
            shutil.copy(file, tmp_path)
        return str(tmp_path)

    return folder


def expected(folder: str, activation: Callable[..., Any]) -> list[list[float]]:
    """The probabilities of all labels, of each text by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(torch.tensor([tokenizer.encode(text)])).logits[0].numpy() for text in TEXTS]
    return [activation(row).tolist() for row in logits]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_of_two_labels_the_second_is_the_fault(make, batch_size: int) -> None:
    folder = make(2)
    probabilities = TextClassifier(folder, "cpu").probabilities(TEXTS, batch_size)
    assert probabilities == pytest.approx([row[1] for row in expected(folder, softmax)], abs=1e-5)
    assert max(probabilities) - min(probabilities) > 0.02, "the texts differ, or this shows no order"


def test_of_labels_that_may_all_hold_the_likeliest_counts(make) -> None:
    folder = make(4, problem_type="multi_label_classification")
    probabilities = TextClassifier(folder, "cpu").probabilities(TEXTS, 2)
    assert probabilities == pytest.approx([max(row) for row in expected(folder, expit)], abs=1e-5)


def test_a_single_label_is_a_probability_of_its_own(make) -> None:
    folder = make(1)
    probabilities = TextClassifier(folder, "cpu").probabilities(TEXTS, 2)
    assert probabilities == pytest.approx([row[0] for row in expected(folder, expit)], abs=1e-5)


def test_a_text_longer_than_the_model_can_read_is_cut(make) -> None:
    folder = make(2, max_position_embeddings=40)
    at_limit, cut = TextClassifier(folder, "cpu").probabilities(["boat " * 500, "boat " * 501], 2)
    assert at_limit == pytest.approx(cut, abs=1e-6)


def test_the_labels_names_say_which_are_faults(make) -> None:
    folder = make(3, id2label={0: "hate", 1: "neutral", 2: "offensive"})
    probabilities = TextClassifier(folder, "cpu").probabilities(TEXTS, 2)
    assert probabilities == pytest.approx([row[0] + row[2] for row in expected(folder, softmax)], abs=1e-5)


def test_a_blank_text_is_not_at_fault(make) -> None:
    classifier = TextClassifier(make(2), "cpu")
    blank, scored, empty = classifier.probabilities([" ", TEXTS[0], ""], 2)
    assert (blank, empty) == (0.0, 0.0) and [scored] == pytest.approx(classifier.probabilities(TEXTS[:1], 1), abs=1e-6)


def test_folders_that_are_no_classifier_are_refused(make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot tell which of its labels safe, clean mean that a text is at fault"):
        TextClassifier(make(2, id2label={0: "safe", 1: "clean"}), "cpu")
    with pytest.raises(UserError, match=r"no config.json there"):
        TextClassifier(str(tmp_path / "nowhere"), "cpu")
    AutoModel.from_pretrained(make(2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"score.weight is missing, so it would judge at random"):
        TextClassifier(str(tmp_path), "cpu")


def test_weights_that_would_have_to_be_unpickled_are_refused(make, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(make(2))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a sequence classifier that can be opened"):
        TextClassifier(str(tmp_path), "cpu")
