"""The embedded world: its facts and language, prompts, uneven writers, gold score, simulated labelers and tiny base."""
