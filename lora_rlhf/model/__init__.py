"""One frozen base model, the adapters and heads on it, and the forward passes and sampling that use them."""

import logging

# bitsandbytes says this when it is first imported (by peft), on every CPU with AVX512-BF16; the kernel that it misses
# would write to the base, and is never used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)
