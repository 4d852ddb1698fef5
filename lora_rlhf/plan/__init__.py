"""`lora-rlhf plan`: the memory and time of each stage, predicted from a model's config alone."""
