"""Text in, tensors out: reading, checking, templating and padding data. Knows a tokenizer, never a model."""
