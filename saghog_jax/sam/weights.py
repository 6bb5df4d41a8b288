"""Converts published weights of Segment Anything: names, layouts, and sizes from shapes.

Two sets of names are accepted: the published ones (`image_encoder.blocks.0.attn.qkv.weight`), which
our modules follow, and those of Hugging Face (`vision_encoder.layers.0.attn.qkv.weight`). PyTorch
stores the kernel of a linear map as [out, in], of a convolution as [out, in, h, w], of a transposed
convolution as [in, out, h, w].
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from saghog_jax.sam.model import SamSizes, parameter_shapes
from saghog_jax.weights.torch_names import Report

# Hugging Face's names -> the published names; the rules are applied one after the other.
_HUGGING_FACE = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"layer_norm_final_attn\.", "norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    # A perceptron of `proj_in`, `layers` and `proj_out`; all published models have three layers.
    (r"((?:_mlps\.\d|_head)\.)layers\.0\.", r"\1layers.1."),
    (r"((?:_mlps\.\d|_head)\.)proj_in\.", r"\1layers.0."),
    (r"((?:_mlps\.\d|_head)\.)proj_out\.", r"\1layers.2."),
)
# Hugging Face stores the random frequencies twice.
_HUGGING_FACE_COPY = "shared_image_embedding.positional_embedding"


def published_name(path: str) -> str:
    """The published name of the parameter at `path` (`image_encoder/blocks_0/attn/qkv/kernel`)."""
    name = re.sub(r"_(\d+)(?=/|$)", r".\1", path).replace("/", ".")
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", name)


def from_published(weights: Mapping[str, np.ndarray]) -> tuple[dict, SamSizes, Report]:
    """Converts weights under either set of names to our parameters.

    Args:
      weights: name -> array.

    Returns:
      all parameters in float32, the sizes, and a report with the names in `weights`.

    Raises:
      ValueError: the weights are no SAM, a parameter is missing, or a shape differs from the
        model's; the message names both shapes.
    """
    original = published_names(weights)
    arrays = {name: np.asarray(weights[old], np.float32) for name, old in original.items()}
    sizes = sizes_from(arrays)
    params, used, missing, mismatches = {}, [], [], []
    for path, leaf in flatten_dict(parameter_shapes(sizes), sep="/").items():
        name = published_name(path)
        if name not in arrays:
            missing.append(name)
            continue
        array = to_ours(path, arrays[name])
        if array.shape != leaf.shape:
            mismatches.append(
                f"{original[name]} has shape {arrays[name].shape}, which becomes {array.shape}, "
                f"the model {leaf.shape}"
            )
        params[path] = array
        used.append((original[name], path))
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(missing) + len(used)} parameters of SAM are missing, the "
            f"first is {missing[0]}"
        )
    if mismatches:
        raise ValueError("weights do not fit the model: " + "; ".join(mismatches))
    used_names = {name for name, _ in used}
    unused = [(name, _reason(name)) for name in weights if name not in used_names]
    return unflatten_dict(params, sep="/"), sizes, Report(tuple(used), (), tuple(unused))


def published_names(weights: Iterable[str]) -> dict[str, str]:
    """Published name -> name in `weights`, for either set of names."""
    names = {}
    hugging_face = any(name.startswith("vision_encoder.") for name in weights)
    for name in weights:
        published = name
        if hugging_face and name != _HUGGING_FACE_COPY:
            for pattern, replacement in _HUGGING_FACE:
                published = re.sub(pattern, replacement, published)
        names[published] = name
    return names


def sizes_from(arrays: Mapping[str, np.ndarray]) -> SamSizes:
    """Sizes of a SAM from its weights under the published names; the decoder always has 8 heads.

    Raises:
      ValueError: an array that determines a size is missing or has an unexpected rank.
    """
    blocks = "image_encoder.blocks."

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in arrays:
            raise ValueError(
                f"not the weights of a SAM: {name} is missing; the first names are "
                f"{sorted(arrays)[:5]}"
            )
        if arrays[name].ndim != rank:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {rank} axes")
        return arrays[name].shape

    def count(pattern: str) -> int:
        return len({m[1] for name in arrays if (m := re.match(pattern, name))})

    width, _, token_size, _ = shape("image_encoder.patch_embed.proj.weight", 4)
    grid = shape("image_encoder.pos_embed", 4)[1]
    depth = count(re.escape(blocks) + r"(\d+)\.")
    # Tables of relative positions have 2 side - 1 rows; their width is that of a head.
    sides = [(shape(f"{blocks}{i}.attn.rel_pos_h", 2)[0] + 1) // 2 for i in range(depth)]
    windows = {side for side in sides if side != grid}
    if len(windows) > 1:
        raise ValueError(f"the blocks have windows of different sizes: {sorted(windows)} tokens")
    layers = "mask_decoder.transformer.layers."
    return SamSizes(
        width=width,
        depth=depth,
        heads=width // shape(f"{blocks}0.attn.rel_pos_h", 2)[1],
        global_blocks=tuple(i for i, side in enumerate(sides) if side == grid),
        image_size=grid * token_size,
        token_size=token_size,
        window=windows.pop() if windows else 0,
        mlp_ratio=shape(f"{blocks}0.mlp.lin1.weight", 2)[0] // width,
        features=shape("image_encoder.neck.0.weight", 4)[0],
        decoder_depth=count(re.escape(layers) + r"(\d+)\."),
        decoder_inner=shape(f"{layers}0.cross_attn_token_to_image.q_proj.weight", 2)[0],
        decoder_hidden=shape(f"{layers}0.mlp.lin1.weight", 2)[0],
        masks=shape("mask_decoder.mask_tokens.weight", 2)[0] - 1,
        iou_hidden=shape("mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
        iou_depth=count(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        mask_width=shape("prompt_encoder.mask_downscaling.3.weight", 4)[0],
    )


def to_ours(path: str, array: np.ndarray) -> np.ndarray:
    """Converts a published array to our layout."""
    if not path.endswith("/kernel"):
        return array
    if "/output_upscaling_" in path:
        # [in, out, h, w] -> [in, (h, w, out)].
        array = array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    elif path.endswith("/neck_2/kernel"):
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 4:
        # [out, in, h, w] -> [(h, w, in), out], the order of `patchify`.
        array = array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    else:
        array = array.T
    return np.ascontiguousarray(array)


def _reason(name: str) -> str:
    if name == _HUGGING_FACE_COPY:
        return "copy of the prompt encoder's frequencies"
    return "SAM has no parameter of this name"
