"""Makes sam_tiny.npz, sam_onnx.npz and sam_vit_h.json beside it, with the package segment-anything.

    pip install segment-anything==1.0 torch numpy pillow onnx && python tests/golden/make_sam.py

Nothing of this project runs here. The model is tiny and random; weights are whole in half
precision, which is how they are stored. Torchvision is not needed: the three functions of it that
the package imports are stood in for.
"""

import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent


def nms(boxes, scores, iou_threshold):
    """Greedy suppression, the best first, equal scores in order."""
    kept = []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        x0, y0, x1, y1 = boxes[i].tolist()
        for j in kept:
            a0, b0, a1, b1 = boxes[j].tolist()
            inner = max(min(x1, a1) - max(x0, a0), 0) * max(min(y1, b1) - max(y0, b0), 0)
            union = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - inner
            if union > 0 and inner / union > iou_threshold:
                break
        else:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


def stand_in_for_torchvision():
    names = ("torchvision", "torchvision.ops", "torchvision.ops.boxes",
             "torchvision.transforms", "torchvision.transforms.functional")  # fmt: skip
    modules = {name: types.ModuleType(name) for name in names}
    boxes = modules["torchvision.ops.boxes"]
    boxes.batched_nms = lambda boxes, scores, _, iou_threshold: nms(boxes, scores, iou_threshold)
    boxes.box_area = lambda boxes: (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    functional = modules["torchvision.transforms.functional"]
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    sys.modules.update(modules)


stand_in_for_torchvision()

from segment_anything import SamAutomaticMaskGenerator  # noqa: E402
from segment_anything.build_sam import build_sam_vit_h  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402


def tiny():
    torch.manual_seed(2)
    norm = lambda width: torch.nn.LayerNorm(width, eps=1e-6)  # noqa: E731
    sam = Sam(
        ImageEncoderViT(
            img_size=64, patch_size=16, embed_dim=16, depth=2, num_heads=2, out_chans=16,
            norm_layer=norm, use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
        ),
        PromptEncoder(
            embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=2, embedding_dim=16, num_heads=8, mlp_dim=24),
            iou_head_hidden_dim=12,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )  # fmt: skip
    with torch.no_grad():
        for name, value in sam.state_dict().items():
            noise = torch.randn_like(value)
            if value.ndim == 1 and ("norm" in name or ".1." in name or "neck" in name):
                noise = noise * 0.2 + name.endswith("weight")
            elif value.ndim > 1 and "embed" not in name and "pos" not in name:
                # So that attention prefers some keys to others, and logits reach beyond 1.
                scale = 3.0 if "attn" in name else 8.0 if "mlps" in name else 1.3
                noise *= scale * value[0].numel() ** -0.5
            else:
                noise *= 0.7
            value.copy_(noise.half())
    return sam.eval()


@torch.no_grad()
def passes(sam, rng):
    """One image, prompts of every kind."""
    out = {"image": rng.normal(size=(1, 64, 64, 3)).astype(np.float16)}
    image = torch.tensor(out["image"].astype(np.float32)).permute(0, 3, 1, 2)
    embedding = sam.image_encoder(image)
    out["embedding"] = embedding.permute(0, 2, 3, 1).numpy()
    out["points"] = rng.uniform(0, 64, (3, 2, 2)).astype(np.float32)
    out["labels"] = np.array([[1, 0], [0, 0], [1, 1]], np.int32)
    out["boxes"] = rng.uniform(0, 64, (3, 4)).astype(np.float32)
    out["masks"] = rng.normal(size=(3, 16, 16)).astype(np.float16)
    points = torch.tensor(out["points"]), torch.tensor(out["labels"])
    boxes = torch.tensor(out["boxes"])
    masks = torch.tensor(out["masks"].astype(np.float32))[:, None]
    prompts = {
        "points": (points, None, None),
        "boxes": (points, boxes, None),
        "masks": (points, None, masks),
    }
    for name, prompt in prompts.items():
        sparse, dense = sam.prompt_encoder(*prompt)
        logits, iou = sam.mask_decoder.predict_masks(
            embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense
        )
        out[f"{name}_logits"], out[f"{name}_iou"] = logits.numpy(), iou.numpy()
    return out


class Planted(torch.nn.Module):
    """Stands in for the mask decoder: gives given masks, prompt after prompt."""

    def __init__(self, logits, iou):
        super().__init__()
        self.logits, self.iou, self.done = torch.tensor(logits), torch.tensor(iou), 0

    def forward(self, sparse_prompt_embeddings, **_):
        prompts = slice(self.done, self.done + len(sparse_prompt_embeddings))
        self.done = prompts.stop
        return self.logits[prompts], self.iou[prompts]


def planted(rng):
    """Blobs of many sizes and slopes, some of them empty, with predicted IoU that has ties."""
    y, x = np.mgrid[:16, :16] / 15.0
    logits = []
    for _ in range(16 * 3):
        (cy, cx), (ry, rx) = rng.uniform(0, 0.9, 2), rng.uniform(0.04, 0.45, 2)
        bump = 1 - ((y - cy) / ry) ** 2 - ((x - cx) / rx) ** 2
        logits.append(np.clip(bump * rng.choice([0.6, 2.0, 20.0]), -9, 9))
    logits[5] = logits[11] = np.full((16, 16), -3.0)
    logits[17] = np.full((16, 16), -0.5)
    logits = np.array(logits, np.float16).reshape(16, 3, 16, 16)
    iou = rng.integers(12, 20, (16, 3)).astype(np.float32) / 20
    return logits, iou


def generated(sam, rng):
    """What the package's generator makes of planted masks, on pages of two sizes."""
    logits, iou = planted(rng)
    out = {"planted_logits": logits, "planted_iou": iou}
    decoder = sam.mask_decoder
    for name, shape in {"same": (64, 48), "large": (90, 160)}.items():
        for rule, options in {
            "open": {"pred_iou_thresh": -1e9, "stability_score_thresh": 0.0},
            "strict": {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.5},
        }.items():
            sam.mask_decoder = Planted(logits.astype(np.float32), iou)
            generator = SamAutomaticMaskGenerator(
                sam, points_per_side=4, points_per_batch=3, box_nms_thresh=0.3, **options
            )
            found = generator.generate(np.zeros((*shape, 3), np.uint8))
            key = f"{name}_{rule}_"
            out[key + "masks"] = np.packbits([m["segmentation"] for m in found], axis=-1)
            for field in ("predicted_iou", "stability_score"):
                out[key + field] = np.array([m[field] for m in found], np.float32)
            print(key, len(found), out[key + "stability_score"].round(2))
    sam.mask_decoder = decoder
    return out


class HuggingFaceEncoder(torch.nn.Module):
    """The encoder with the inputs and outputs of the ONNX export of Hugging Face's optimum."""

    def __init__(self, sam):
        super().__init__()
        self.sam = sam

    def forward(self, pixel_values):
        positions = self.sam.prompt_encoder.get_dense_pe()
        return self.sam.image_encoder(pixel_values), positions


class HuggingFaceDecoder(torch.nn.Module):
    """The decoder likewise, for one image."""

    def __init__(self, sam):
        super().__init__()
        self.sam = sam
        self.official = SamOnnxModel(sam, return_single_mask=False)

    def forward(self, input_points, input_labels, image_embeddings, image_positional_embeddings):
        points = torch.nn.functional.pad(input_points[0], (0, 0, 0, 1))
        labels = torch.nn.functional.pad(input_labels[0], (0, 1), value=-1)
        masks = torch.zeros(1, 1, 16, 16)
        logits, iou = self.sam.mask_decoder.predict_masks(
            image_embeddings,
            image_positional_embeddings,
            self.official._embed_points(points, labels),
            self.official._embed_masks(masks, torch.zeros(1)),
        )
        return iou[None, :, 1:], logits[None, :, 1:]


class RawEncoder(torch.nn.Module):
    """The encoder of pixels [h, w, 3], which normalises and fills up by itself."""

    def __init__(self, sam):
        super().__init__()
        self.sam = sam

    def forward(self, input_image):
        x = (input_image.permute(2, 0, 1) - self.sam.pixel_mean) / self.sam.pixel_std
        h, w = x.shape[-2:]
        return self.sam.image_encoder(torch.nn.functional.pad(x, (0, 64 - w, 0, 64 - h))[None])


def export(model, inputs, outputs, dynamic):
    file = io.BytesIO()
    torch.onnx.export(
        model, tuple(inputs.values()), file, input_names=list(inputs), output_names=outputs,
        dynamic_axes=dynamic, opset_version=18, dynamo=False,
    )  # fmt: skip
    return np.frombuffer(file.getvalue(), np.uint8)


def exported(sam):
    image, embedding = torch.zeros(1, 3, 64, 64), torch.zeros(1, 16, 4, 4)
    one = torch.zeros(1)
    return {
        "official_encoder": export(
            sam.image_encoder, {"images": image}, ["image_embeddings"], {}
        ),
        "official_decoder": export(
            SamOnnxModel(sam, return_single_mask=False),
            {"image_embeddings": embedding, "point_coords": torch.zeros(1, 2, 2),
             "point_labels": torch.zeros(1, 2), "mask_input": torch.zeros(1, 1, 16, 16),
             "has_mask_input": one, "orig_im_size": torch.tensor([64.0, 64.0])},
            ["masks", "iou_predictions", "low_res_masks"],
            {"point_coords": {1: "points"}, "point_labels": {1: "points"}},
        ),
        "raw_encoder": export(
            RawEncoder(sam), {"input_image": torch.zeros(64, 48, 3)}, ["image_embeddings"],
            {"input_image": {0: "height", 1: "width"}},
        ),
        "hugging_face_encoder": export(
            HuggingFaceEncoder(sam), {"pixel_values": image},
            ["image_embeddings", "image_positional_embeddings"], {"pixel_values": {0: "batch"}},
        ),
        "hugging_face_decoder": export(
            HuggingFaceDecoder(sam),
            {"input_points": torch.zeros(1, 5, 1, 2),
             "input_labels": torch.ones(1, 5, 1, dtype=torch.int64),
             "image_embeddings": embedding,
             "image_positional_embeddings": embedding},
            ["iou_scores", "pred_masks"],
            {"input_points": {1: "prompts", 2: "points"},
             "input_labels": {1: "prompts", 2: "points"}},
        ),
    }  # fmt: skip


def main():
    sam, rng = tiny(), np.random.default_rng(0)
    weights = {f"w/{k}": v.numpy().astype(np.float16) for k, v in sam.state_dict().items()}
    np.savez_compressed(HERE / "sam_tiny.npz", **weights, **passes(sam, rng), **generated(sam, rng))
    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in build_sam_vit_h().state_dict().items()}
    (HERE / "sam_vit_h.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    np.savez_compressed(HERE / "sam_onnx.npz", **exported(sam))
    for name in ("sam_tiny.npz", "sam_vit_h.json", "sam_onnx.npz"):
        print(name, (HERE / name).stat().st_size)


if __name__ == "__main__":
    main()
