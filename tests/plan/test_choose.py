"""What the plan chooses, refuses and prints."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_rlhf.cli.main import COMMANDS, parse
from lora_rlhf.configs.catalogue import BY_NAME, PPO, SFT
from lora_rlhf.model.skeleton import count_model, make_config
from lora_rlhf.plan.cards import BY_NAME as CARD_OF
from lora_rlhf.plan.cards import CARDS, COMMON, GIB, MIB, OWN_CONTEXT, Card, find_by_name, find_card
from lora_rlhf.plan.choose import MARGIN, choose_plan
from lora_rlhf.plan.config import PlanConfig
from lora_rlhf.plan.dryrun import ChunkedLine, Envelope, Line, Plane
from lora_rlhf.plan.memory import CPU, CUDA, Setting, highest_point, memory_points
from lora_rlhf.plan.report import command_lines, models_table_markdown, print_plan
from lora_rlhf.plan.shapes import SHAPES, find_shape_name
from lora_rlhf.plan.subject import MeasuredModel, measure_model
from lora_rlhf.system.errors import UserError
from tests.support.pretended_cuda import pretended
from tests.zoo.checkpoints import CHECKPOINTS

pytestmark = pytest.mark.xdist_group("plan")  # one worker measures the embedded model

ASKED = PlanConfig(model="tinyworld", gpu_gib=6, max_prompt_tokens=24, max_response_tokens=8)
# of the checkpoints that their makers published, as the hub tells them
PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    assert count_model(make_config(*SHAPES[name]), "nf4", torch.bfloat16).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"),
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
    ],
)
def test_hub_names_of_known_shapes_need_no_network(name: str, key: str) -> None:
    assert find_shape_name(name) == key


def test_other_names_are_not_known() -> None:
    assert find_shape_name("somebody/qwen2.5-1.5b-merged") is None


def test_the_most_of_many_moments_is_another_with_more_rows() -> None:
    """100 + 1 a row, 10 + 20 a row, and 5 + 3 a row: the first is the most with 2 and 3 rows, the second with 9."""
    envelope = Envelope.from_series([102, 50, 11], [103, 70, 14])
    assert [envelope.bytes_at(rows) for rows in (1, 2, 3, 9)] == [101, 102, 103, 190]


def test_passes_of_unlike_operations_are_no_envelope() -> None:
    with pytest.raises(ValueError, match="3 rows takes 1 operations, of 2 rows 2"):
        Envelope.from_series([1, 2], [3])


def test_a_plane_goes_on_in_layers() -> None:
    def true(rows: int, layers: int) -> int:
        return 5 + 7 * rows + 3 * rows * layers

    few, more = (Envelope.from_series([true(2, layers)], [true(3, layers)]) for layers in (2, 4))
    assert [Plane(few, more).bytes_at(1, 1), Plane(few, more).bytes_at(8, 28)] == [15, 733]


def test_a_head_beyond_a_chunk_is_on_another_line() -> None:
    head = ChunkedLine(4, Line((1, 10.0), (2, 20.0)), Line((8, 100.0), (16, 116.0)))
    assert [head.bytes_at(3), head.bytes_at(4), head.bytes_at(5), head.bytes_at(12)] == [30, 40, 94, 108]


def card(gib: float) -> Card:
    return Card("any", gib, 300, 30, 15, 8.9, "none")


@pytest.mark.slow
def test_what_is_chosen_fits_with_a_margin(tinyworld: MeasuredModel) -> None:
    for gib in (0.6, 0.7, 1, 4):
        run_plan = choose_plan(tinyworld, ASKED, card(gib))
        assert all(stage.peak.total <= gib * GIB * (1 - MARGIN) for stage in run_plan.stages.values())


@pytest.mark.slow
def test_a_larger_card_is_no_slower(tinyworld: MeasuredModel) -> None:
    asked = replace(ASKED, stage="ppo")
    times = [choose_plan(tinyworld, asked, card(gib)).stages["ppo"].seconds for gib in (0.58, 0.6, 0.7, 1, 4)]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


@pytest.mark.slow
def test_what_is_given_stays(tinyworld: MeasuredModel) -> None:
    asked = replace(ASKED, micro_batch_size=3, generation_batch_size=5, gradient_checkpointing=True, advantage="grpo")
    run_plan = choose_plan(tinyworld, asked, card(6))
    setting = run_plan.stages["ppo"].setting
    assert (setting.micro_batch, setting.generation_batch, setting.checkpointing) == (3, 5, True)
    assert (run_plan.advantage, setting.value_role) == ("grpo", False)


@pytest.mark.slow
def test_without_room_for_a_value_role_there_is_none(tinyworld: MeasuredModel) -> None:
    """At a rank at which adapters are most of it, and a card between what PPO needs with four roles and with three."""
    asked = replace(ASKED, lora_rank=256, micro_batch_size=1, generation_batch_size=1)
    tops = []
    for value_role in (True, False):
        setting = Setting(1, 1, True, 256, value_role, asked.minibatch_size, asked.batch_size)
        tops.append(highest_point(memory_points(PPO, tinyworld.counts, tinyworld.passes, setting, CUDA)).total)
    between = sum(tops) / 2 / GIB / (1 - MARGIN)
    run_plan = choose_plan(tinyworld, asked, card(between))
    assert run_plan.advantage == "rloo"
    assert "--advantage rloo --samples_per_prompt 4" in command_lines(run_plan, asked)[-1]


@pytest.mark.slow
def test_nothing_that_fits_is_refused_with_what_it_needs(tinyworld: MeasuredModel) -> None:
    with pytest.raises(UserError, match=r"does not fit a card of 0.5 GiB.*needs 0\.\d GiB.*a card of 6 GiB would do"):
        choose_plan(tinyworld, ASKED, card(0.5))


@pytest.mark.slow
def test_a_batch_that_no_card_holds_is_refused_with_one_that_fits(tinyworld: MeasuredModel) -> None:
    asked = replace(ASKED, micro_batch_size=10**6, minibatch_size=10**6, batch_size=10**6)
    with pytest.raises(
        UserError, match=r"micro_batch_size 1000000 needs .* more than any card .*What fits: --micro_batch_size"
    ):
        choose_plan(tinyworld, asked, card(24))


@pytest.mark.slow
def test_command_lines_parse_to_what_was_planned(tinyworld: MeasuredModel) -> None:
    asked = replace(ASKED, lora_rank=8, gradient_checkpointing=True)
    run_plan = choose_plan(tinyworld, asked, card(6))
    for line, stage in zip(command_lines(run_plan, asked), BY_NAME, strict=True):
        name, *words = shlex.split(line)[1:]
        assert name == stage
        config = parse(name, words)
        assert config.faults() == []
        assert config.micro_batch_size == run_plan.stages[stage].setting.micro_batch
        assert (config.gradient_checkpointing, config.max_prompt_tokens, config.max_response_tokens) == (True, 24, 8)
    assert parse("sft", shlex.split(command_lines(run_plan, asked)[0])[2:]).lora_rank == 8
    planned = run_plan.stages["ppo"].setting.generation_batch
    assert parse("ppo", shlex.split(command_lines(run_plan, asked)[-1])[2:]).generation_batch_size == planned


@pytest.mark.slow
def test_each_role_costs_its_adapter_gradients_and_moments(tinyworld: MeasuredModel) -> None:
    """A value role: an adapter, its gradient and two moments, float32; and nothing of the base."""
    tops = {}
    for value_role in (True, False):
        points = memory_points(PPO, tinyworld.counts, tinyworld.passes, Setting(8, 8, False, 16, value_role), CUDA)
        tops[value_role] = next(point for point in points if point.name == "scoring").total
    lora = 16 * sum(one.in_features + one.out_features for one in tinyworld.counts.linears if one.adapted)
    assert tops[True] - tops[False] == pytest.approx(4 * 4 * (lora + tinyworld.counts.hidden_size))


@pytest.mark.slow
def test_checkpointing_keeps_less(tinyworld: MeasuredModel) -> None:
    tops = []
    for checkpointing in (False, True):
        points = memory_points(SFT, tinyworld.counts, tinyworld.passes, Setting(32, 1, checkpointing, 16, True), CPU)
        tops.append(highest_point(points).total)
    assert tops[1] < 0.8 * tops[0]


def test_a_card_has_to_be_named_where_none_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--gpu_gib"):
        find_card(PlanConfig(model="tinyworld"))


def test_a_cards_speed_can_be_given() -> None:
    found = find_card(PlanConfig(model="tinyworld", gpu_gib=16, bandwidth=1000, tflops=100))
    assert (found.gib, found.bandwidth, found.tflops) == (16, 1000, 100)
    named = find_card(PlanConfig(model="tinyworld", card="4090", gpu_gib=23.2))
    assert (named.name, named.gib, named.bandwidth) == ("RTX 4090", 23.2, 1008)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("4090", "RTX 4090"),
        ("rtx4060ti", "RTX 4060 Ti"),
        ("4060 Ti 16 GB", "RTX 4060 Ti"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("RTX", None),
    ],
)
def test_cards_are_known_by_name(name: str, known: str | None) -> None:
    card = find_by_name(name)
    assert (card and card.name) == known


def test_every_card_of_the_table_is_found_by_its_own_name() -> None:
    assert [find_by_name(card.name) for card in CARDS] == list(CARDS)
    for card in CARDS:
        assert 1.5 < card.tflops / card.float32_tflops < 17, card


def test_an_unknown_card_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"card '4099' is not known here; known are RTX 2060, .* H200; others by --gpu"):
        find_card(PlanConfig(model="tinyworld", card="4099"))
    assert PlanConfig(card="4090", table=True).faults() == ["--table has cards of its own: leave --card out"]


def test_on_a_machine_with_a_gpu_free_memory_counts_and_clocks_tell_its_speed() -> None:
    """The played GPU has 8 of 24 GiB free, and the clocks, bus and units of a 4090."""
    with pretended() as played:
        played.free = 8 * GIB
        found = find_card(PlanConfig(model="tinyworld"))
    assert found.gib == (8 * GIB + OWN_CONTEXT) / GIB
    assert found.name == "Pretended GPU"
    known = CARD_OF["RTX 4090"]
    for name in ("bandwidth", "tflops", "float32_tflops", "capability"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=0.01)


@pytest.mark.slow
def test_data_centre_cards_have_larger_workspaces(tinyworld: MeasuredModel) -> None:
    libraries = {
        name: choose_plan(tinyworld, ASKED, CARD_OF[name]).stages["sft"].peak.parts["libraries"]
        for name in ("RTX 4090", "H200")
    }
    assert libraries == {"RTX 4090": 3 * 8 * MIB, "H200": 3 * 32 * MIB}


@pytest.mark.slow
def test_free_slots_are_refilled_beside_the_slots_and_the_graphs(tinyworld: MeasuredModel) -> None:
    """Prompts are read beside a cache that is full; on a CPU no graph keeps memory."""
    setting = Setting(8, 64, False, 16, True)
    points = {
        device: {point.name: point for point in memory_points(PPO, tinyworld.counts, tinyworld.passes, setting, device)}
        for device in (CPU, CUDA)
    }
    assert "refilling slots" not in points[CPU]
    refill, drawing = points[CUDA]["refilling slots"].parts, points[CUDA]["drawing a token"].parts
    assert refill["kv cache"] == drawing["kv cache"]
    assert refill["graph pool"] > 24 * 64 * tinyworld.counts.vocab_size
    assert refill["read cache"] == pytest.approx(refill["kv cache"] * 24 / 32)  # 64 prompts of 24 tokens are read


def write_config(folder: Path, **values: object) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "odd", model_type="nobodys")
    with pytest.raises(UserError, match=r"odd.*nobodys"):
        print_plan(replace(ASKED, model=folder))


@pytest.mark.slow
def test_what_writes_no_text_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "vision", model_type="vit", hidden_size=64)
    with pytest.raises(UserError, match="'vit' config does not make a causal language model"):
        print_plan(replace(ASKED, model=folder))


@pytest.mark.long
@pytest.mark.parametrize("name", ["bamba", "gpt_neo", "jamba", "nemotron_h", "qwen3_moe", "zamba2"])
def test_layers_of_several_kinds_and_experts_are_planned(tmp_path: Path, name: str) -> None:
    CHECKPOINTS[name].make_config().save_pretrained(tmp_path)
    lengths: dict[str, Any] = {"max_prompt_tokens": 32, "max_response_tokens": 16}
    assert measure_model(PlanConfig(model=str(tmp_path), device="cpu", **lengths)).passes.scoring.bytes_at(4, 8) > 0


def test_what_cannot_be_trained_is_not_planned(tmp_path: Path) -> None:
    CHECKPOINTS["bloom"].make_config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BloomForCausalLM takes no position_ids"):
        measure_model(PlanConfig(model=str(tmp_path), device="cpu"))


def test_lengths_beyond_the_context_are_refused() -> None:
    with pytest.raises(UserError, match=r"max_prompt_tokens 100000 .* but the context of 'tinyworld' is"):
        print_plan(replace(ASKED, max_prompt_tokens=100_000))


@pytest.mark.slow
def test_a_folder_with_a_config_alone_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    folder = write_config(tmp_path / "bare", model_type="llama", **sizes)
    print_plan(replace(ASKED, model=folder, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "LlamaForCausalLM"
    for stage in found["stages"].values():
        assert sum(stage["parts"].values()) == pytest.approx(stage["peak_bytes"], rel=1e-4)
        assert max(stage["heights"].values()) == stage["peak_bytes"]
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json"]


@pytest.mark.slow
def test_a_person_is_shown_parts_seconds_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(ASKED)
    shown = capsys.readouterr().out
    for part in ("base, quantized", "adapters", "optimizer", "cuda context", "in all", "about", "lora-rlhf ppo --run"):
        assert part in shown


def test_a_model_or_a_table_is_asked_for() -> None:
    assert PlanConfig().faults() == ["give --model, or --table for popular ones"]
    assert PlanConfig(model="x", table=True).faults() == ["give --model or --table, not both"]
    assert PlanConfig(model="x", micro_batch_size=0).faults() == ["micro_batch_size is 0, must be at least 1"]


def test_the_table_marks_what_does_not_fit() -> None:
    cell = {"micro_batch": 4, "generation_batch": 64, "checkpointing": True, "value_role": False, "seconds": 90}
    cells = {f"{card.gib:g}": None if card.gib < 24 else cell for card in COMMON}
    shown = models_table_markdown(ASKED, [{"model": "m", "cards": cells}])
    assert shown.splitlines()[-1] == "| m | - | - | - | - | 4cr, 64, 90 s | 4cr, 64, 90 s |"


def test_the_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS["plan"].kind is PlanConfig
    config = parse("plan", ["--model", "tinyworld", "--gpu-gib", "16", "--table", "false"])
    assert config.gpu_gib == 16
