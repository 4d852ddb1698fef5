"""What an operation costs on a card, computed by hand; and what the plan says of whole passes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor

from lora_rlhf.plan.cards import Card
from lora_rlhf.plan.memory import Setting
from lora_rlhf.plan.meter import Meter
from lora_rlhf.plan.pairs import PairStep
from lora_rlhf.plan.roofline import Roofline
from lora_rlhf.plan.subject import MeasuredModel
from lora_rlhf.plan.work import FUSED_ROWS, KERNEL, PRODUCTS, TRAFFIC, Operation, Work

pytestmark = pytest.mark.xdist_group("plan")  # one worker measures the embedded model

CARD = Card("any", 24, bandwidth=1000, tflops=500, float32_tflops=50, capability=8.9, source="none")
BYTES_PER_SECOND, FLOPS = 1000e9 * TRAFFIC, 1e12 * PRODUCTS


def operations(work: Callable[[], object]) -> list[Operation]:
    with torch.no_grad(), Meter() as meter, meter.record_phase("all"):
        work()
    return meter.operations.get("all", [])


def seconds(work: Callable[[], object], rows: int = 1) -> float:
    done = operations(work)
    return Work.from_operations(rows, done, done).cost(rows, CARD).seconds


@pytest.mark.parametrize(("dtype", "tflops", "size"), [(torch.bfloat16, 500, 2), (torch.float32, 50, 4)])
def test_a_product_takes_the_longer_of_its_flop_and_its_bytes(dtype: torch.dtype, tflops: float, size: int) -> None:
    tall, weight, row = (
        torch.zeros(shape, dtype=dtype, device="meta") for shape in ((4096, 2048), (2048, 1024), (1, 2048))
    )
    assert seconds(lambda: tall @ weight) == pytest.approx(2 * 4096 * 2048 * 1024 / (tflops * FLOPS))
    moved = size * (2048 + 2048 * 1024 + 1024)
    assert seconds(lambda: row @ weight) == pytest.approx(moved / BYTES_PER_SECOND)


def test_views_cost_nothing_and_a_small_kernel_its_start() -> None:
    states = torch.zeros(64, 32)
    assert operations(lambda: states.T.view(32, 8, 8)[3:].unsqueeze(0)) == []
    assert seconds(lambda: states.add_(1)) == KERNEL


@pytest.mark.parametrize(
    ("work", "moved"),
    [
        (lambda a, b: a * b, 3 * 4),
        (lambda a, b: a.copy_(b), 2 * 4),
        (lambda a, b: a.bfloat16(), 4 + 2),
        (lambda a, b: a + b[:1].expand_as(b), 2 * 4),
        (lambda a, b: torch.cat([a, b]), 4 * 4),
        (lambda a, b: torch.empty_like(a).zero_(), 4),
    ],
)
def test_bytes_of_elementwise_work(work: Callable[[Tensor, Tensor], object], moved: int) -> None:
    a, b = torch.zeros(4096, 4096), torch.zeros(4096, 4096)
    assert seconds(lambda: work(a, b)) == pytest.approx(moved * 4096**2 / BYTES_PER_SECOND, rel=1e-3)


def test_a_4_bit_weight_is_read_as_it_is_for_few_rows_and_dequantized_for_many() -> None:
    layer = Linear4bit(1024, 4096, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = False
    weights, size = 1024 * 4096, 2

    def of(rows: int) -> float:
        states = torch.zeros(rows, 1024, dtype=torch.bfloat16)
        return seconds(lambda: layer(states), rows)

    few = 0.5 * weights + size * FUSED_ROWS * (1024 + 4096)
    assert of(FUSED_ROWS) == pytest.approx(few / BYTES_PER_SECOND)
    rows = FUSED_ROWS + 1
    unpacked = (0.5 + 2) * weights / BYTES_PER_SECOND
    product = (2 * weights + size * rows * (1024 + 4096)) / BYTES_PER_SECOND
    assert of(rows) == pytest.approx(unpacked + product)


@pytest.mark.slow
def test_parts_of_an_iteration_on_a_faster_card_take_less(tinyworld: MeasuredModel) -> None:
    """A pass started from Python takes no less than its kernels' starts; a replayed step does."""
    passes, counts = tinyworld.passes, tinyworld.counts
    fast = Card("fast", 24, 1e6, 1e6, 1e6, 8.9, "none")
    quick, slow = (Roofline(counts, passes, card) for card in (fast, CARD))
    scoring = quick.pass_cost("scoring", 8) + quick.head_cost(8)
    assert quick.scoring_seconds(8) == pytest.approx(scoring.kernels * 7e-6)
    assert quick.step_seconds(64, merged=False) < quick.pass_cost("step", 64).kernels * 7e-6
    assert quick.step_seconds(64, merged=True) < quick.step_seconds(64, merged=False)
    assert slow.training_seconds(64, False) < slow.training_seconds(64, True) < 1.5 * slow.training_seconds(64, False)


@pytest.mark.slow
def test_a_step_of_dpo_in_parts_reads_the_layers_once_more(tinyworld: MeasuredModel) -> None:
    """For the reference, and in parts for the policy: the backward pass computes each part's layers again."""
    done = operations(lambda: torch.zeros(64, 64) + 1)
    heads = PairStep(32, 0, 0, 0, 0, 0, 0, Work.from_operations(1, done, done))
    roofline = Roofline(tinyworld.counts, replace(tinyworld.passes, pairs=heads), CARD)
    whole = Setting(32, generation_batch=8, checkpointing=False, rank=16, value_role=False, minibatch=32)

    def layers(rows: int, times_read: int) -> float:
        training = roofline.training_seconds(rows, False, has_logprobs=False)
        return training + times_read * roofline.scoring_seconds(rows, head=None)

    parts = replace(whole, micro_batch=16)
    more = roofline.step_of_pairs_seconds(parts) - roofline.step_of_pairs_seconds(whole)
    assert more == pytest.approx(2 * layers(16, 2) - layers(32, 1))
