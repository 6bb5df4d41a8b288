"""Converts published PyTorch weights to our parameters and back: names, layouts, a report.

The published names are those of the state dict: `blocks.0.attn.qkv.weight` in a masked autoencoder,
the same under `backbone.` beside `nv.*` (NetRVLAD) and `embed_fc.weight` in a writer model. PyTorch
stores the kernel of a linear map as [out, in], that of the token embedding as [out, c, h, w].
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from saghog_jax.models.pos_embed import sincos_2d

BACKBONE = "backbone."
CHANNELS = 3  # Channels of the images in the published models.
# Our path of an encoder's or decoder's parameter -> published name; N is the number of a block.
BLOCK_NAMES = {
    "norm1/scale": "norm1.weight",
    "norm1/bias": "norm1.bias",
    "attention/qkv_kernel": "attn.qkv.weight",
    "attention/qkv_bias": "attn.qkv.bias",
    "attention/proj/kernel": "attn.proj.weight",
    "attention/proj/bias": "attn.proj.bias",
    "norm2/scale": "norm2.weight",
    "norm2/bias": "norm2.bias",
    "fc1/kernel": "mlp.fc1.weight",
    "fc1/bias": "mlp.fc1.bias",
    "fc2/kernel": "mlp.fc2.weight",
    "fc2/bias": "mlp.fc2.bias",
}
NAMES = {
    "encoder/cls_token": "cls_token",
    "encoder/patch_embed/proj/kernel": "patch_embed.proj.weight",
    "encoder/patch_embed/proj/bias": "patch_embed.proj.bias",
    "encoder/norm/scale": "norm.weight",
    "encoder/norm/bias": "norm.bias",
    "decoder/mask_token": "mask_token",
    "decoder/embed/kernel": "decoder_embed.weight",
    "decoder/embed/bias": "decoder_embed.bias",
    "decoder/norm/scale": "decoder_norm.weight",
    "decoder/norm/bias": "decoder_norm.bias",
    "decoder/pred/kernel": "decoder_pred.weight",
    "decoder/pred/bias": "decoder_pred.bias",
    "netrvlad/centroids": "nv.centroids",
    "netrvlad/kernel": "nv.conv.weight",
    "netrvlad/bias": "nv.conv.bias",
    "embed/kernel": "embed_fc.weight",
}
POSITIONS = {"pos_embed": "encoder", "decoder_pos_embed": "decoder"}
SOBEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)
FIXED = {"target_generator.weight_x": SOBEL, "target_generator.weight_y": SOBEL.T}
# The published position embedding is computed in float32.
POSITION_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Report:
    """The used, missing and unused weights of a conversion.

    Attributes:
      used: (published name, our path) of every converted weight.
      missing: our paths without a weight.
      unused: (published name, reason) of every other weight.
    """

    used: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unused: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """One line per weight."""
        return [
            *(f"used     {name} -> {path}" for name, path in self.used),
            *(f"missing  {path}" for path in self.missing),
            *(f"unused   {name}: {reason}" for name, reason in self.unused),
        ]


def published_name(path: str, prefix: str = "") -> str | None:
    """The published name of the parameter at `path` (`encoder/block_0/fc1/kernel`).

    Args:
      path: keys joined by `/`.
      prefix: `backbone.` for the encoder and decoder of a writer model, else empty.

    Returns:
      the name; None if the published model has no such parameter.
    """
    block = re.fullmatch(r"(encoder|decoder)/block_(\d+)/(.+)", path)
    if block and block[3] in BLOCK_NAMES:
        blocks = "blocks" if block[1] == "encoder" else "decoder_blocks"
        return f"{prefix}{blocks}.{block[2]}.{BLOCK_NAMES[block[3]]}"
    name = NAMES.get(path)
    if name is None or not path.startswith(("encoder/", "decoder/")):
        return name
    return prefix + name


def architecture(weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Sizes of the model, read from the shapes of its weights (which do not tell the heads).

    Returns:
      `token_size`, `width`, `depth`, `mlp_ratio`, and if present `patch_size`, `decoder_width`,
      `decoder_depth`, `target_dim`, `num_clusters`, `embed_dim`.

    Raises:
      ValueError: there is no encoder under the published names.
    """
    weights = _strip_parallel(weights)
    prefix = _prefix(weights)

    def shape(name: str) -> tuple[int, ...]:
        return np.shape(weights[name])

    embedding, mlp = prefix + "patch_embed.proj.weight", prefix + "blocks.0.mlp.fc1.weight"
    if embedding not in weights or mlp not in weights:
        raise ValueError(
            f"these weights contain no encoder: {embedding} and {mlp} are needed; "
            f"the first names are {sorted(weights)[:5]}"
        )
    width, _, token_size, _ = shape(embedding)
    sizes = {
        "token_size": token_size,
        "width": width,
        "depth": _count_blocks(weights, prefix + "blocks"),
        "mlp_ratio": shape(mlp)[0] // width,
    }
    if prefix + "pos_embed" in weights:
        side = round((shape(prefix + "pos_embed")[1] - 1) ** 0.5)
        sizes["patch_size"] = side * token_size
    if prefix + "decoder_pred.weight" in weights:
        sizes["target_dim"], sizes["decoder_width"] = shape(prefix + "decoder_pred.weight")
        sizes["decoder_depth"] = _count_blocks(weights, prefix + "decoder_blocks")
    if "nv.centroids" in weights:
        sizes["num_clusters"] = shape("nv.centroids")[0]
    if "embed_fc.weight" in weights:
        sizes["embed_dim"] = shape("embed_fc.weight")[0]
    return sizes


def from_torch_names(
    weights: Mapping[str, np.ndarray], template: Mapping
) -> tuple[dict[str, dict], Report]:
    """Converts weights with published names to our parameters.

    Args:
      weights: name -> array.
      template: nested dict of arrays or ShapeDtypeStructs, the parameters of the model
        (`jax.eval_shape` of a module's `init`): {"encoder", "decoder"} or
        {"encoder", "netrvlad", ...}.

    Returns:
      the parameters, float32 numpy arrays in the structure of `template` without the missing
      parameters, and the report.

    Raises:
      ValueError: a shape differs from the model's; the message names both.
    """
    weights = _strip_parallel(weights)
    prefix = _prefix(weights)
    params, used, missing, mismatches = {}, [], [], []
    for path, leaf in flatten_dict(template, sep="/").items():
        name = published_name(path, prefix)
        if name is None or name not in weights:
            missing.append(path)
            continue
        array = _to_ours(path, np.asarray(weights[name], np.float32))
        if array.shape != leaf.shape:
            published = _published_shape(path, leaf.shape)
            mismatches.append(f"{name} has shape {np.shape(weights[name])}, the model {published}")
        params[path] = array
        used.append((name, path))
    if mismatches:
        raise ValueError("weights do not fit the model: " + "; ".join(mismatches))
    unused = weights.keys() - {name for name, _ in used}
    reasons = [(name, _reason(name, weights[name], prefix)) for name in weights if name in unused]
    return unflatten_dict(params, sep="/"), Report(tuple(used), tuple(missing), tuple(reasons))


def to_torch_names(
    params: Mapping, patch_size: int, target_channels: int = 0
) -> tuple[dict[str, np.ndarray], Report]:
    """Converts our parameters to published names, with the fixed arrays of the published code.

    Args:
      params: {"encoder", "decoder"}, {"encoder"}, or {"encoder", "netrvlad", ...}.
      patch_size: side of the images in pixels (determines the position embedding).
      target_channels: channels of the images whose HOG is the target; 0 if the target is not HOG.

    Returns:
      name -> float32 array, and a report; its `missing` lists our parameters without a published
      name.
    """
    prefix = BACKBONE if "netrvlad" in params else ""
    weights, used, missing = {}, [], []
    for path, leaf in flatten_dict(params, sep="/").items():
        name = published_name(path, prefix)
        if name is None:
            missing.append(path)
            continue
        weights[name] = _to_published(path, np.asarray(leaf, np.float32))
        used.append((name, path))
    token_size = weights[prefix + "patch_embed.proj.weight"].shape[-1]
    side = patch_size // token_size
    tokens = {"encoder": "cls_token", "decoder": "mask_token"}
    for name, part in POSITIONS.items():
        if part in params:
            width = params[part][tokens[part]].shape[-1]
            weights[prefix + name] = _positions(width, (side, side))
    for name, kernel in FIXED.items():
        if target_channels:
            stacked = np.broadcast_to(kernel, (1, target_channels, 3, 3))
            weights[prefix + name] = np.ascontiguousarray(stacked)
    return weights, Report(tuple(used), tuple(missing), ())


def _to_ours(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("patch_embed/proj/kernel") and array.ndim == 4:
        # [d, c, h, w] -> [(h, w, c), d], the order of `patchify`.
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0]))
    if path == "netrvlad/kernel" and array.ndim == 4:
        array = array[:, :, 0, 0]
    if path.endswith("kernel"):
        array = np.ascontiguousarray(array.T)
    return array


def _to_published(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("patch_embed/proj/kernel"):
        side = round((array.shape[0] // CHANNELS) ** 0.5)
        array = array.reshape(side, side, CHANNELS, -1).transpose(3, 2, 0, 1)
    elif path == "netrvlad/kernel":
        array = array.T[:, :, None, None]
    elif path.endswith("kernel"):
        array = array.T
    return np.ascontiguousarray(array)


def _published_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return _to_published(path, np.zeros(shape, np.float32)).shape


def _positions(width: int, grid: tuple[int, int]) -> np.ndarray:
    table = sincos_2d(width, grid)
    return np.concatenate([np.zeros((1, width), np.float32), table])[None]


def _reason(name: str, array: np.ndarray, prefix: str) -> str:
    short = name.removeprefix(prefix)
    if short in POSITIONS:
        side = round((array.shape[1] - 1) ** 0.5)
        if array.shape[1] == side * side + 1:
            error = np.abs(array - _positions(array.shape[2], (side, side))).max()
            if error < POSITION_TOLERANCE:
                return "fixed position embedding, equal to ours"
        return "WARNING: the position embedding differs from ours; results will differ"
    if short in FIXED:
        return "fixed gradient kernel of the HOG target"
    if short.startswith(("decoder_", "mask_token")):
        return "decoder of pretraining; this model has no decoder"
    return "this model has no parameter of this name"


def _strip_parallel(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes the prefix that PyTorch's data-parallel wrapper adds to every name."""
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): array for name, array in weights.items()}
    return dict(weights)


def _prefix(weights: Mapping[str, np.ndarray]) -> str:
    return BACKBONE if any(name.startswith(BACKBONE) for name in weights) else ""


def _count_blocks(weights: Mapping[str, np.ndarray], stem: str) -> int:
    numbers = {m[1] for name in weights if (m := re.match(re.escape(stem) + r"\.(\d+)\.", name))}
    return len(numbers)
