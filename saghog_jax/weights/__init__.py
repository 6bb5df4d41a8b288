"""Weights of published PyTorch models, by name."""
