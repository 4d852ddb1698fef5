"""One frozen base model, the adapters and heads on it, and the forward passes and sampling that use them."""
