"""What `inspect` shows is what a stage gets: the batch's cells against words that the test spells out."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lora_rlhf.cli.main import main
from lora_rlhf.configs.catalogue import PPO, REWARD, SFT
from lora_rlhf.configs.stages import PPOConfig, SFTConfig
from lora_rlhf.data.encode import EncodedExample, EncodedPrompt, EncodedRanking
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import encode_text
from lora_rlhf.inspection.batches import (
    Batch,
    Cell,
    Line,
    Origin,
    demonstration_batch,
    prompt_batch,
    ranked_response_batch,
    token_texts,
)
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base, load_tokenizer
from lora_rlhf.model.generate import Response
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import StageFolder

Capture = pytest.CaptureFixture[str]
Tiny = Callable[[str], Path]

TOKENIZER = load_tokenizer("tinyworld")  # byte-level; </s> is 0, <pad> is 1; "User: ...\n\nAssistant: ...</s>"
HERE, THERE = Origin("d.jsonl:1"), Origin("d.jsonl:2", ("cut",))


def ids(text: str, end: bool = False) -> list[int]:
    return encode_text(TOKENIZER, text) + [0] * end


SHORT = EncodedExample(ids("User: Hi\n\nAssistant:"), ids(" Yes.", end=True))
LONG = EncodedExample(
    ids("User: Where does the fox live?\n\nAssistant:"), ids(" The fox lives in the forest.", end=True)
)


def text(cells: Sequence[Cell]) -> str:
    return "".join(cell.text for cell in cells)


def of(line: Line, *roles: str) -> list[Cell]:
    return [cell for cell in line.cells if cell.token_kind in roles]


def titles(batch: Batch) -> list[str]:
    return [line.title for line in batch.lines]


@pytest.mark.parametrize("packing", [False, True])
def test_sft_counts_the_response_and_its_end_alone(packing: bool) -> None:
    batch = demonstration_batch(SFT, TOKENIZER, [SHORT, LONG], [HERE, THERE], packing)
    short, long = batch.lines
    assert text(of(short, "prompt")) == "User: Hi\n\nAssistant:"
    assert text([cell for cell in short.cells if cell.counts]) == " Yes.</s>"
    assert text(of(short, "response")) == " Yes." and text(of(short, "end")) == "</s>"
    assert text(of(long, "prompt")) == "User: Where does the fox live?\n\nAssistant:"
    assert text([cell for cell in long.cells if cell.counts]) == " The fox lives in the forest.</s>"
    for line, example in ((short, SHORT), (long, LONG)):
        real = of(line, "prompt", "response", "end")
        assert [cell.id for cell in real] == example.prompt_ids + example.response_ids
        assert [cell.position for cell in real] == list(range(len(real)))
    assert titles(batch) == ["d.jsonl:1", "d.jsonl:2"] and long.notes == ("cut",)


def test_sft_pads_to_the_longest_on_the_right() -> None:
    batch = demonstration_batch(SFT, TOKENIZER, [SHORT, LONG], [HERE, THERE], packing=False)
    width = len(LONG.prompt_ids + LONG.response_ids)
    missing = width - len(SHORT.prompt_ids + SHORT.response_ids)
    assert missing > 0 and batch.shapes == dict.fromkeys(("input_ids", "attention_mask", "labels"), (2, width))
    assert batch.lines[0].cells[-missing:] == (Cell(1, "<pad>", "padding", False, None),) * missing
    assert of(batch.lines[1], "padding") == [] and len(of(batch.lines[0], "padding")) == missing


def test_packed_rows_have_no_padding() -> None:
    batch = demonstration_batch(SFT, TOKENIZER, [SHORT, LONG], [HERE, THERE], packing=True)
    width = len(SHORT.prompt_ids + SHORT.response_ids + LONG.prompt_ids + LONG.response_ids)
    assert batch.shapes == dict.fromkeys(("input_ids", "labels", "position_ids"), (1, width))
    assert sum(len(line.cells) for line in batch.lines) == width
    assert "positions begin again" in batch.notes[0]


def test_a_cut_response_has_no_end() -> None:
    cut = EncodedExample(SHORT.prompt_ids, SHORT.response_ids[:-1])
    (line,) = demonstration_batch(SFT, TOKENIZER, [cut], [HERE], packing=False).lines
    assert of(line, "end") == [] and line.num_counted == len(cut.response_ids)
    assert "cut at max_response_tokens" in line.notes[0]


def test_an_end_token_within_the_prompt_is_no_end() -> None:
    history = EncodedExample([*ids("User: Hi\n\nAssistant: Yes.", end=True), *ids("\n\nUser: x")], SHORT.response_ids)
    (line,) = demonstration_batch(SFT, TOKENIZER, [history], [HERE], packing=False).lines
    assert [cell.position for cell in of(line, "end")] == [len(line.cells) - 1]


def test_reward_scores_the_last_token_of_each_response() -> None:
    rankings = [
        EncodedRanking(SHORT.prompt_ids, [SHORT.response_ids, ids(" No, thank you.", end=True)], [2, 1]),
        EncodedRanking(LONG.prompt_ids, [SHORT.response_ids, LONG.response_ids], [1, 1]),
    ]
    batch = ranked_response_batch(REWARD, TOKENIZER, rankings, [HERE, THERE])
    assert titles(batch) == [
        "d.jsonl:1, response 1 of 2, rank 2",
        "d.jsonl:1, response 2 of 2, rank 1",
        "d.jsonl:2, response 1 of 2, rank 1",
        "d.jsonl:2, response 2 of 2, rank 1",
    ]
    answers = [text(of(line, "response", "end")) for line in batch.lines]
    assert answers == [" Yes.</s>", " No, thank you.</s>", " Yes.</s>", " The fox lives in the forest.</s>"]
    for line in batch.lines:
        (scored,) = (cell for cell in line.cells if cell.score)
        assert scored.counts and scored.token_kind == "end" and line.num_counted == 1
        assert scored.position == line.count("prompt", "response", "end") - 1
    assert [bool(line.notes and "share a rank" in line.notes[-1]) for line in batch.lines] == [False, False, True, True]
    assert batch.lines[0].cells[0].token_kind == "padding" == batch.lines[0].cells[-1].token_kind


def test_ppo_prompts_end_at_the_right_edge() -> None:
    prompts = [EncodedPrompt(example.prompt_ids, Prompt.of("x")) for example in (SHORT, LONG)]
    batch = prompt_batch(PPO, TOKENIZER, prompts, [HERE, THERE], None)
    missing = len(LONG.prompt_ids) - len(SHORT.prompt_ids)
    assert [cell.token_kind for cell in batch.lines[0].cells] == ["padding"] * missing + ["prompt"] * len(
        SHORT.prompt_ids
    )
    assert batch.lines[0].cells[missing].position == 0
    assert batch.lines[0].num_counted == 0 and list(batch.shapes) == ["prompt_ids", "prompt_mask"]
    assert batch.lines[1].notes == ("cut", "sampling begins after the last token")


def test_ppo_responses_count_up_to_where_they_stopped() -> None:
    prompts = [EncodedPrompt(SHORT.prompt_ids, Prompt.of("Hi"))] * 2
    responses = [
        Response(ids(" Yes.", end=True), True),
        Response(ids(" The fox lives in the"), False),
    ]
    done, endless = prompt_batch(PPO, TOKENIZER, prompts, [HERE, HERE], responses).lines
    assert text([cell for cell in done.cells if cell.counts]) == " Yes.</s>" and done.notes == ()
    assert text([cell for cell in endless.cells if cell.counts]) == " The fox lives in the"
    assert [cell.text for line in (done, endless) for cell in line.cells if cell.score] == ["</s>", " the"]
    assert "missing_eos_score" in endless.notes[0]


def test_pieces_are_the_text_in_order() -> None:
    written = "Where does the fox live?\n\n  It  lives, I think."
    assert "".join(token_texts(TOKENIZER, ids(written))) == written


def test_a_character_of_several_tokens_stands_at_its_last() -> None:
    found = token_texts(TOKENIZER, ids("caf\u00e9 \U0001f98a!"))
    assert "".join(found).replace("\ufffd", "") == "caf\u00e9 \U0001f98a!"
    assert found[-2:] == ["\U0001f98a", "!"] and found.count("\ufffd") >= 3


def test_an_id_without_a_token_is_named() -> None:
    assert token_texts(TOKENIZER, [*ids("Hi"), len(TOKENIZER) + 3])[-1] == f"<no token {len(TOKENIZER) + 3}>"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    rows = [
        {"prompt": "Where does the fox live?", "completion": "In the forest."},
        {"prompt": "Hi", "completion": ""},
        {"prompt": "Hi", "completion": "Yes."},
        {"prompt": "Hi there", "completion": "Hello, I am a fox and I live in the forest."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys: Capture, *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_command_shows_usable_rows_from_the_start_on(data: Path, capsys: Capture) -> None:
    out = run(capsys, data, "--stage", "sft", "--start", 1, "--rows", 1)
    assert f"1. {data}:3: prompt 8 tokens, response 4 (4 in the loss), padding 0" in out
    assert "[response: Y·es·.][end:</s>]" in out and "2. " not in out and "\x1b" not in out
    assert "a response ends at 0 </s>; padding is 1 <pad>" in out


def test_command_in_color(data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[38;5;16;48;5;" in run(capsys, data, "--stage", "sft", "--color", "always")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in run(capsys, data, "--stage", "sft")
    assert "\x1b[" not in run(capsys, data, "--stage", "sft", "--color", "never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run(capsys, data, "--stage", "sft")


def test_limits_are_those_of_a_stage(data: Path, capsys: Capture, caplog: pytest.LogCaptureFixture) -> None:
    flags = (data, "--stage", "sft", "--rows", 9, "--max-response-tokens", 5)
    out = run(capsys, *flags)
    assert f"{data}:3" in out and f"{data}:4" not in out
    assert "max_response_tokens=5" in caplog.text
    out = run(capsys, *flags, "--long-responses", "cut", "--max-prompt-tokens", 9)
    assert f"{data}:4" in out and "the response was cut at max_response_tokens" in out
    assert "the prompt lost its beginning: max_prompt_tokens is 9" in out


def test_command_writes_a_page(data: Path, capsys: Capture) -> None:
    path = data.parent / "batch.html"
    assert f"page: {path}" in run(capsys, data, "--stage", "ppo", "--html", path)
    assert "sampling begins after the last token" in path.read_text()


def test_a_page_is_written_neither_over_the_data_nor_into_a_folder_that_is_not_there(
    data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_rlhf.inspection.inspect.load_tokenizer", lambda *_: pytest.fail("it went on"))
    before = data.read_bytes()
    assert main(["inspect", str(data), "--stage", "sft", "--html", str(data)]) == 2
    assert "would destroy it" in capsys.readouterr().err and data.read_bytes() == before
    assert main(["inspect", str(data), "--stage", "sft", "--html", str(data.parent / "none/x.html")]) == 2
    assert "no such folder" in capsys.readouterr().err and not (data.parent / "none").exists()


def test_no_such_rows(data: Path, capsys: Capture) -> None:
    assert main(["inspect", str(data), "--stage", "sft", "--start", "3"]) == 2
    message = capsys.readouterr().err
    assert "start is 3, but 3 of its rows can be used" in message and "the response is empty" in message
    assert main(["inspect", str(data), "--stage", "reward"]) == 2
    assert "not rankings" in capsys.readouterr().err


def test_equal_responses_of_a_ranking_are_one(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "r.jsonl"
    row = {"prompt": "Hi", "responses": ["Yes.", "No.", "Yes. "], "ranks": [1, 2, 1]}
    path.write_text(json.dumps(row) + "\n")
    out = run(capsys, path, "--stage", "reward")
    assert "response 2 of 2, rank 2" in out and "of 3" not in out


def test_a_model_that_is_not_there(data: Path, capsys: Capture) -> None:
    assert main(["inspect", str(data), "--stage", "sft", "--model", str(data.parent)]) == 2
    assert "no config.json there" in capsys.readouterr().err
    (data.parent / "config.json").write_text("{}")
    assert main(["inspect", str(data), "--stage", "sft", "--model", str(data.parent)]) == 2
    assert f"base model {str(data.parent)!r}: its tokenizer does not load" in capsys.readouterr().err


def test_an_output_that_is_not_utf8_shows_what_it_can(data: Path) -> None:
    written = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(written, encoding="ascii")) as out:
        assert main(["inspect", str(data), "--stage", "ppo"]) == 0
        out.flush()
        assert b"[prompt:User\\xb7:" in written.getvalue()


@pytest.fixture
def finished(tiny_model: Tiny, tmp_path: Path) -> Path:
    """A run whose SFT stage is finished, on a base without a chat template of its own."""
    model = SharedModel(load_base(BaseSpec(str(tiny_model("mistral"))), "cpu"))
    model.tokenizer.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|end|>"
    model.add_role("sft", LoraSettings(rank=2, alpha=4))
    folder = StageFolder(SFTConfig(run=str(tmp_path / "run"), model="m", demonstrations="d"), "sft")
    folder.begin(describe_base(model), {}, {})
    model.save_role("sft", folder.path / "adapter")
    folder.finish({})
    return tmp_path / "run"


@pytest.fixture
def with_policy(finished: Path, tiny_model: Tiny) -> Path:
    """The same run with a PPO stage, whose policy is far from the SFT model."""
    model = SharedModel(load_base(BaseSpec(str(tiny_model("mistral"))), "cpu"))
    model.add_role("policy", LoraSettings(rank=2, alpha=4))
    for _, parameter in model.named_parameters_of("policy"):
        parameter.data.fill_(0.5)
    folder = StageFolder(PPOConfig(run=str(finished), prompts="p"), "ppo")
    folder.begin(describe_base(model), {}, {})
    model.save_role("policy", folder.path / "adapter")
    folder.finish({})
    return finished


def test_a_run_gives_base_template_and_sampled_responses(finished: Path, data: Path, capsys: Capture) -> None:
    flags = (data, "--stage", "ppo", "--run", finished, "--max-prompt-tokens", 64, "--max-response-tokens", 6)
    out = run(capsys, *flags)
    assert f"chat template: as in {finished}" in out and "[prompt:<|user|>·" in out
    assert "response 6 (6 sampled)" in out or "[end:<|end|>] <- score" in out
    assert out.count("<- score") == 3, "two responses and the legend"
    assert run(capsys, *flags) == out, "the same seed"
    assert run(capsys, *flags, "--seed", 1) != out
    assert "[prompt:<|user|>·" in run(capsys, data, "--stage", "sft", "--run", finished)


def test_the_policy_samples_where_there_is_one(
    finished: Path, data: Path, capsys: Capture, request: pytest.FixtureRequest
) -> None:
    flags = (data, "--stage", "ppo", "--run", finished, "--max-prompt-tokens", 64, "--max-response-tokens", 6)
    before = run(capsys, *flags)
    request.getfixturevalue("with_policy")
    assert run(capsys, *flags) != before
