"""Segment Anything in ONNX files: the engine `onnx` of the region backend `sam` (extra `onnx`).

The user gives an encoder and a decoder. The names of the inputs tell two conventions apart: that of
the published export (`image_embeddings`, `point_coords`, ...), one point a call, and that of
Hugging Face (`pixel_values`, `input_points`, `image_positional_embeddings`), a batch of points.
"""

from typing import TYPE_CHECKING

import numpy as np

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.sam.frames import normalised
from saghog_jax.sam.prompt_encoder import FOREGROUND, NO_POINT

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_IMAGE_SIZE = 1024
_OFFICIAL = {"image_embeddings", "point_coords", "point_labels"}
_HUGGING_FACE = {"image_embeddings", "image_positional_embeddings", "input_points"}


# Output name of the encoder -> array.
Embedding = dict[str, np.ndarray]


class OnnxSegmenter:
    """SAM in two ONNX files, see `mask_generator.Segmenter`."""

    def __init__(self, encoder: str, decoder: str) -> None:
        """Opens the files.

        Raises:
          UserError: onnxruntime is missing, a file is no model, or its inputs are unknown.
        """
        self._encoder, self._decoder = _open(encoder), _open(decoder)
        image, *others = self._encoder.get_inputs()
        if others or len(image.shape) not in (3, 4):
            inputs = {i.name: i.shape for i in self._encoder.get_inputs()}
            raise UserError(
                f"{encoder}: an encoder of SAM has one input, [1, 3, h, w] or [h, w, 3], "
                f"got {inputs}"
            )
        self._image = image.name
        # Encoders with input [h, w, 3] normalise the image themselves.
        self._raw = len(image.shape) == 3
        sides = image.shape[2:] if not self._raw else ()
        self.image_size = next((s for s in sides if isinstance(s, int)), _IMAGE_SIZE)
        self._inputs = {i.name: i for i in self._decoder.get_inputs()}
        self._outputs = [o.name for o in self._decoder.get_outputs()]
        if set(self._inputs) >= _OFFICIAL:
            self._decode, outputs = self._decode_official, ("low_res_masks", "iou_predictions")
        elif set(self._inputs) >= _HUGGING_FACE:
            self._decode, outputs = self._decode_hugging_face, ("pred_masks", "iou_scores")
        else:
            raise UserError(
                f"{decoder}: a decoder of SAM has the inputs {sorted(_OFFICIAL)} or "
                f"{sorted(_HUGGING_FACE)}, got {sorted(self._inputs)}"
            )
        if missing := [name for name in outputs if name not in self._outputs]:
            raise UserError(f"{decoder}: no output {missing[0]!r}, its outputs are {self._outputs}")
        self._masks_and_scores = list(outputs)

    def encode(self, frame: np.ndarray) -> Embedding:
        """[h, w, 3] -> the outputs of the encoder."""
        if self._raw:
            image = frame.astype(np.float32)
        else:
            image = normalised(frame, self.image_size).transpose(0, 3, 1, 2)
        names = [o.name for o in self._encoder.get_outputs()]
        arrays = self._encoder.run(names, {self._image: np.ascontiguousarray(image)})
        # The published export has one output, of any name.
        return dict(zip(names if len(names) > 1 else ["image_embeddings"], arrays))

    def decode(self, embedding: Embedding, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[q, 2] -> logits [q, m, l, l], IoU [q, m]."""
        return self._decode(embedding, points)

    def _decode_official(
        self, embedding: Embedding, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        image = embedding["image_embeddings"]
        side = 4 * image.shape[-1]
        feeds = {
            "image_embeddings": image,
            "point_labels": np.float32([[FOREGROUND, NO_POINT]]),
            "mask_input": np.zeros((1, 1, side, side), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            # The masks at page size are not used: as small as possible.
            "orig_im_size": np.float32([1, 1]),
        }
        feeds = {name: array for name, array in feeds.items() if name in self._inputs}
        logits, iou = [], []
        for point in points:
            feeds["point_coords"] = np.float32([[point, (0, 0)]])
            masks, scores = self._decoder.run(self._masks_and_scores, feeds)
            # Of four masks the first is the one for unambiguous prompts.
            several = slice(1, None) if masks.shape[1] > 3 else slice(None)
            logits.append(masks[0, several])
            iou.append(scores[0, several])
        return np.stack(logits), np.stack(iou)

    def _decode_hugging_face(
        self, embedding: Embedding, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        feeds = {
            **embedding,
            "input_points": points[None, :, None],
            "input_labels": np.full((1, len(points), 1), FOREGROUND, np.int64),
        }
        feeds = {name: array for name, array in feeds.items() if name in self._inputs}
        masks, scores = self._decoder.run(self._masks_and_scores, feeds)
        return masks[0], scores[0]


def _open(file: str) -> "InferenceSession":
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "regions.sam.engine=onnx needs onnxruntime: pip install 'saghog_jax[onnx]'"
        ) from None
    try:
        return onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
    # onnxruntime has no common class of exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no ONNX model that can be run: {reason}") from None
