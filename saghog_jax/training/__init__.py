"""Training: one loop for both stages, losses, gradients, optimiser, augmentation, validation."""
