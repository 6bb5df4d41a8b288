"""Run folders: checkpoints, metrics, reports and pictures of a training run."""
