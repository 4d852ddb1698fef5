"""`lora-rlhf plan`: what each stage will take, in memory and time, told from a model's config alone."""
