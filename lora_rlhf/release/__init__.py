"""Release: whether a candidate may replace a baseline, the pointer that says what is in use, and what others need."""
