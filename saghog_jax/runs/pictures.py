"""Pictures of what the masked autoencoder sees and predicts, and of what finetuning calls a class.

Pictures are uint8 [h, w, 3], 255 is white. Axis letters: n patches, l tokens, t target size, s side
of a patch in pixels, g tokens a side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

GAP = 4  # Pixels between the pictures of a grid.
SCALE = 5  # Pixels of a picture a pixel of a patch.
_LINE = 0.9  # Length of a glyph's lines, of its cell.
_BETWEEN = 208  # Grey between pictures.
_REMOVED = 0.75  # Grey of a token that the encoder does not see.


class Picture(NamedTuple):
    """A picture of a report: its file, what it shows in a sentence, and what its columns are."""

    title: str
    description: str
    png: bytes
    width: int
    columns: Sequence[str] = ()


def reconstruction(
    images: np.ndarray,
    binary: np.ndarray,
    mask: np.ndarray,
    target: np.ndarray,
    predicted: np.ndarray,
    config: ConfigDict,
) -> Picture:
    """What a masked autoencoder saw of some patches, what it was to predict, what it predicted.

    Args:
      images: float [n, s, s, 3]; `binary`: [n, s, s, 1], 1 = paper; both in [0, 1].
      mask: [n, l], 1 = removed; `target`, `predicted`: [n, l, t].
      config: of a pretraining run.
    """
    token, target_name = config.model.token_size, config.target.replace("_", " of the ")

    def draw(values: np.ndarray) -> np.ndarray:
        if config.target == "pixel":
            return pixel_tokens(values, token)
        return hog_glyphs(values, token, config.hog.cell_size, config.hog.num_bins)

    columns = {
        "patch": enlarge(images),
        "ink": enlarge(binary),
        "tokens seen": visible(images, mask),
        "target": draw(target),
        "predicted": draw(predicted),
        "predicted where unseen": draw(np.where(mask[..., None] > 0, predicted, target)),
    }
    error = np.square(predicted - target).mean(-1)[mask > 0].mean()
    mean = target.mean((0, 1))
    blind = np.square(mean - target).mean(-1)[mask > 0].mean()
    says = (
        f"The encoder saw {1 - mask.mean():.0%} of the tokens and predicted the target "
        f"({target_name}) of all. Mean squared error of the unseen ones {error:.4f}; the mean "
        f"target everywhere would have {blind:.4f}."
    )
    picture = grid([list(row) for row in zip(*columns.values())])
    return Picture("Reconstruction", says, png(picture), picture.shape[1], tuple(columns))


def classes(images: np.ndarray, names: Sequence[str], what: str) -> Picture:
    """Patches that finetuning was told to belong together, a class a row.

    Args:
      images: float [classes, m, s, s, 3] in [0, 1].
      names: of the classes; `what`: what a class is.
    """
    picture = grid([list(enlarge(row, 2)) for row in images])
    says = f"{len(images[0])} patches of each of {len(names)} classes ({what}): {', '.join(names)}."
    return Picture("Classes", says, png(picture), picture.shape[1])


def hog_glyphs(
    target: np.ndarray, token_size: int, cell_size: int, num_bins: int, scale: int = SCALE
) -> np.ndarray:
    """HOG as strokes: in each cell a line a bin, along the edges it counts, as dark as it is full.

    A gradient that points to theta (from +x to +y, which is down) belongs to bin
    floor((90 - theta) mod 180 / (180 / num_bins)); the stroke is drawn across it, at theta + 90
    degrees of the middle of the bin.

    Args:
      target: float [n, l, t], tokens row by row, each bin-major, as `hog.hog` gives them.
      token_size, cell_size: in pixels; scale: pixels of the picture a pixel.

    Returns:
      [n, s * scale, s * scale, 3].
    """
    n, tokens, _ = target.shape
    side, k, cell = round(tokens**0.5), token_size // cell_size, cell_size * scale
    values = target.reshape(n, side, side, num_bins, k, k)
    values = np.clip(np.moveaxis(values, 3, -1), 0, 1)
    strokes = np.einsum("nijklb,bxy->nikxjly", values, _strokes(num_bins, cell))
    darkness = np.minimum(strokes, 1).reshape(n, side * k * cell, side * k * cell)
    return _grey(1 - darkness)


def _strokes(num_bins: int, cell: int) -> np.ndarray:
    """A line through the middle of a cell for each bin, float [num_bins, cell, cell], 1 = ink."""
    lines, middle, bits = [], (cell - 1) / 2, 4
    for number in range(num_bins):
        angle = np.deg2rad(180 - (number + 0.5) * 180 / num_bins)
        step = np.array([np.cos(angle), np.sin(angle)]) * middle * _LINE
        ends = [np.round((middle + sign * step) * 2**bits).astype(int) for sign in (-1, 1)]
        image = np.zeros((cell, cell), np.uint8)
        cv2.line(image, ends[0].tolist(), ends[1].tolist(), 255, 2, cv2.LINE_AA, shift=bits)
        lines.append(image / 255)
    return np.stack(lines)


def pixel_tokens(target: np.ndarray, token_size: int, scale: int = SCALE) -> np.ndarray:
    """Normalised pixels [n, l, token_size^2 * 3] in their places, two deviations a half range.

    Returns:
      [n, s * scale, s * scale, 3].
    """
    n, tokens, _ = target.shape
    side = round(tokens**0.5)
    pixels = target.reshape(n, side, side, token_size, token_size, 3).swapaxes(2, 3)
    images = pixels.reshape(n, side * token_size, side * token_size, 3)
    return enlarge(np.clip(0.5 + images / 4, 0, 1), scale)


def visible(images: np.ndarray, mask: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """Patches with their removed tokens greyed out.

    Args:
      images: float [n, s, s, 3] in [0, 1].
      mask: [n, l], 1 = removed.

    Returns:
      [n, s * scale, s * scale, 3].
    """
    side = round(mask.shape[1] ** 0.5)
    token = images.shape[1] // side
    removed = mask.reshape(-1, side, side, 1).repeat(token, 1).repeat(token, 2)
    return enlarge(np.where(removed > 0, _REMOVED, images), scale)


def enlarge(images: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """Images float [n, s, s, 1 or 3] in [0, 1], every pixel `scale` times as large."""
    large = images.repeat(scale, 1).repeat(scale, 2)
    return (np.broadcast_to(large, (*large.shape[:3], 3)) * 255).round().astype(np.uint8)


def _grey(images: np.ndarray) -> np.ndarray:
    return enlarge(images[..., None], 1)


def grid(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Pictures of one size in rows, on grey."""
    h, w, _ = rows[0][0].shape
    columns = max(map(len, rows))
    page = np.full((len(rows) * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), _BETWEEN, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            page[i * (h + GAP) :, j * (w + GAP) :][:h, :w] = picture
    return page


def png(picture: np.ndarray) -> bytes:
    """The file of a picture."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
