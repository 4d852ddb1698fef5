"""InstructGPT's three stages on one frozen 4-bit base: every learned thing is a LoRA adapter."""

import logging

# bitsandbytes says this when it is first imported, on every CPU with AVX512-BF16; the kernel that it misses is one that
# would write to the base, and is never used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)

__version__ = "0.1.0"
