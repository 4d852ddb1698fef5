"""The arithmetic of RLHF as pure functions of tensors: no model, no tokenizer, no config."""
