"""Reads weights files: arrays by name."""

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from saghog_jax.input_pipeline.errors import UserError

SUFFIXES = (".pt", ".pth", ".safetensors", ".npz")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads arrays by name from a .pt, .pth, .safetensors or .npz file.

    .pt and .pth need PyTorch; only arrays are unpickled.

    Raises:
      UserError: the suffix is unknown, the file is damaged, or PyTorch is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown type of file, known: {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == ".safetensors":
            return load_file(path)
    except (ValueError, OSError, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"{path} is not a readable {path.suffix[1:]} file: {error}") from None
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading {path.suffix} files needs PyTorch: pip install 'saghog_jax[torch]', "
            f"or save the weights as .safetensors where PyTorch is installed"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged or unsafe files
        raise UserError(f"{path} cannot be read safely: {str(error).splitlines()[0]}") from None
    content = content.get("model_state_dict", content) if isinstance(content, dict) else {}
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path} contains no weights: neither model_state_dict nor a state dict")
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}
