"""`lora-rlhf chat`: a conversation in the terminal, with a run or an exported model."""
