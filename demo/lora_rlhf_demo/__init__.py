"""The browser app: compare the stages of a run side by side, label, watch a run, try the reward model."""
