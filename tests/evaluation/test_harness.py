"""The harness's view of a role against its own view of the same model's folder; tasks from local files, no network."""

import builtins
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_rlhf.evaluation import harness
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra")

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"What does the sailor number {i} count?", "choices": ["aaaa", "the ships", "bread"], "answer": i % 3}
    for i in range(8)
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(TASK.format(name="sailors", data=data))
    return str(folder / "mine.yaml")


class Request:
    def __init__(self, *args: Any) -> None:
        self.args = args


@installed
def test_a_role_answers_as_the_harness_reads_the_models_folder(tiny_model: Callable[[str], Path]) -> None:
    from lm_eval.models.huggingface import HFLM

    from lora_rlhf.evaluation.harness_model import HarnessModel

    folder = tiny_model("llama")
    mine = HarnessModel(SharedModel(load_base(BaseSpec(str(folder), "none"), "cpu")), "base", batch_size=3)
    # 255: it feeds all but the last token, and may so see one more than fits
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, max_length=255)
    pairs = [
        Request("The river is", " wide"),
        Request("The river is ", "wide and the boat is small"),
        Request("", "A teacher asks a question"),
        Request("word " * 200, "and the last"),  # longer than the context of 256
    ]
    for one, other in zip(mine.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4) and one[1] == other[1]
    ids = mine.tok_encode("The boat")
    with torch.no_grad():
        best = int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax())
    for token in (best, best + 1):
        (found,) = mine._loglikelihood_tokens([(None, ids, [token])])
        assert found[1] is (token == best)
    texts = [Request("The river is wide; the boat is small. " * k) for k in (1, 30)]
    expected = theirs.loglikelihood_rolling(texts)
    assert mine.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-4)
    asked = [
        Request("The river", {"until": ["gh"], "max_gen_toks": 12}),
        Request("Write a", {"until": [], "max_gen_toks": 5, "do_sample": False}),
    ]
    assert mine.generate_until(asked)[0] == " aer", "of ' aergh...'"
    assert mine.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


@installed
def test_a_local_task_gives_a_value_for_each_question(trained: SharedModel, task: str) -> None:
    """The policy learned to say aaaa, which is the answer to the first, fourth and seventh."""
    columns = harness.harness_columns(
        trained, {"base": "base", "mine": "policy"}, harness.load_tasks([task]), batch_size=4
    )
    assert set(columns["mine"]) == {"sailors/acc", "sailors/acc_norm"}
    found = columns["mine"]["sailors/acc_norm"]
    assert found.kind == "share" and len(found.values) == 8
    expected = []
    for question in QUESTIONS:
        prompt = trained.tokenizer.encode(question["question"], add_special_tokens=False)
        scores = []
        for option in question["choices"]:
            ids = trained.tokenizer.encode(f"{question['question']} {option}", add_special_tokens=False)
            with trained.role("policy"), torch.no_grad():
                rows = trained.causal(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
            own = [rows[t, token].item() for t, token in enumerate(ids[1:])][len(prompt) - 1 :]
            scores.append(sum(own) / len(option))
        expected.append(float(scores.index(max(scores)) == question["answer"]))
    assert list(found.values) == expected
    assert columns["mine"]["sailors/acc"].paired_difference(columns["base"]["sailors/acc"]).n == 8


@installed
def test_what_is_no_task_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager  # without its own thousands of tasks, which take half a minute to find
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: real(**(given | {"include_defaults": False})))
    with pytest.raises(UserError, match=r"no task sailing; `lm-eval ls tasks`"):
        harness.load_tasks(["sailing"])
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        harness.load_tasks([str(tmp_path / "absent.yaml")])


def test_without_the_package_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"--lm_eval arc_easy,piqa: .*pip install 'lm-eval>=0\.4\.13'"):
        harness.require_harness(["arc_easy", "piqa"])
    harness.require_harness([])


def test_the_package_is_not_imported_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith("lm_eval"), "imported without being asked for"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "lora_rlhf.evaluation.harness")
    importlib.import_module("lora_rlhf.evaluation.harness").require_harness([])
