"""`lora-rlhf doctor`: what this machine can run, and what to repair. Each module measures one thing and judges it."""
