"""The three stages of InstructGPT and the sampling between them, one page each, over services that they share."""
