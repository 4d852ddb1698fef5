"""One frozen base model, the adapters and heads on it, and the forward passes and sampling that use them."""

import logging
import os
import sys

# bitsandbytes says this when it is first imported (by peft), on every CPU with AVX512-BF16; the kernel that it misses
# would write to the base, and is never used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)

# Where the package `kernels` is there, transformers and bitsandbytes fetch code with it from the hub while they run.
if os.environ.setdefault("USE_HUB_KERNELS", "NO").upper() in ("NO", "0", "OFF", "FALSE"):
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
