"""How far two passes may be apart."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_rlhf.model.precision import BFLOAT16, FLOAT32, STATE_SPACE, Rounding, expected_rounding


@pytest.mark.parametrize(
    ("quantization", "dtype", "parameter", "rounding"),
    [
        ("nf4", torch.float32, "q_proj.weight", FLOAT32),
        ("nf4", torch.float32, "mixer.A_log", STATE_SPACE),
        ("nf4", torch.bfloat16, "mixer.A_log", BFLOAT16),
        ("int8", torch.float32, "q_proj.weight", BFLOAT16),
    ],
)
def test_rounding_goes_by_dtype_quantization_and_state_spaces(
    quantization: str, dtype: torch.dtype, parameter: str, rounding: Rounding
) -> None:
    causal = SimpleNamespace(dtype=dtype, named_parameters=lambda: [(f"layers.0.{parameter}", None)])
    model: Any = SimpleNamespace(base=SimpleNamespace(spec=SimpleNamespace(quantization=quantization)), causal=causal)
    assert expected_rounding(model) is rounding
