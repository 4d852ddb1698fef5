"""InstructGPT's three stages on one frozen 4-bit base: every learned thing is a LoRA adapter."""

__version__ = "0.1.0"
