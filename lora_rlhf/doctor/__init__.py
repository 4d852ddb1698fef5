"""`lora-rlhf doctor`: what this machine can run, and what to fix. Each module measures one thing and judges it."""
