"""What is in a data file, and what a trainer would see of it."""
