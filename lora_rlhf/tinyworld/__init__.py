"""The embedded world: facts, language, prompts, writers of mixed quality, gold score, labelers and a tiny base model."""
