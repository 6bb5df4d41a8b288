"""Pictures of the input and the predictions of a masked autoencoder, and of finetuning classes.

Pictures are uint8 [h, w, 3], 255 is white. Axis letters: n patches, l tokens, t target size, s side
of a patch in pixels, g tokens a side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

GAP = 4  # pixels between the pictures of a grid
SCALE = 5  # pixels of a picture for one pixel of a patch
_LINE = 0.9  # length of a stroke, as a fraction of its cell
_BETWEEN = 208  # grey between pictures
_REMOVED = 0.75  # grey of removed tokens


class Picture(NamedTuple):
    """A picture of a report.

    description: a sentence about its content.
    png: the bytes of the file.
    width: in pixels.
    columns: headings of its columns.
    """

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
    """Draws some patches with their visible tokens, the targets, and the predictions.

    Args:
      images: float [n, s, s, 3]; `binary`: [n, s, s, 1], 1 = paper; both in [0, 1].
      mask: [n, l], 1 = removed; `target`, `predicted`: [n, l, t].
      config: the config of a pretraining run.
    """
    token, target_name = config.model.token_size, config.target.replace("_", " of the ")

    def draw(values: np.ndarray) -> np.ndarray:
        if config.target == "pixel":
            return pixel_tokens(values, token)
        return hog_glyphs(values, token, config.hog.cell_size, config.hog.num_bins)

    columns = {
        "patch": enlarge(images),
        "ink": enlarge(binary),
        "visible tokens": visible(images, mask),
        "target": draw(target),
        "prediction": draw(predicted),
        "prediction of removed tokens": draw(np.where(mask[..., None] > 0, predicted, target)),
    }
    error = np.square(predicted - target).mean(-1)[mask > 0].mean()
    mean = target.mean((0, 1))
    baseline = np.square(mean - target).mean(-1)[mask > 0].mean()
    description = (
        f"The encoder saw {1 - mask.mean():.0%} of the tokens, and the decoder predicted the "
        f"target ({target_name}) of all. Mean squared error of the removed tokens: {error:.4f}; "
        f"the mean target as prediction has {baseline:.4f}."
    )
    picture = grid([list(row) for row in zip(*columns.values())])
    return Picture("Reconstruction", description, png(picture), picture.shape[1], tuple(columns))


def classes(images: np.ndarray, names: Sequence[str], what: str) -> Picture:
    """Draws patches of some classes of finetuning, one class a row.

    Args:
      images: float [classes, m, s, s, 3] in [0, 1].
      names: names of the classes.
      what: what a class is, such as clusters.
    """
    picture = grid([list(enlarge(row, 2)) for row in images])
    description = (
        f"{len(images[0])} patches of each of {len(names)} classes ({what}): {', '.join(names)}."
    )
    return Picture("Classes", description, png(picture), picture.shape[1])


def hog_glyphs(
    target: np.ndarray, token_size: int, cell_size: int, num_bins: int, scale: int = SCALE
) -> np.ndarray:
    """Draws HOG as strokes: a line for each bin of a cell, along its edges, darker for more counts.

    A gradient with the direction theta (from +x to +y, which points down) belongs to the bin
    floor((90 - theta) mod 180 / (180 / num_bins)). Its stroke is perpendicular: theta + 90 degrees
    for the centre of the bin.

    Args:
      target: float [n, l, t], tokens row by row, each bin-major, as `hog.hog` returns them.
      token_size, cell_size: in pixels.
      scale: pixels of the picture for one pixel of a patch.

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
    """The stroke of each bin in its cell: float [num_bins, cell, cell], 1 = ink."""
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
    """Draws normalised pixels [n, l, token_size^2 * 3]; -2 and 2 deviations are black and white.

    Returns:
      [n, s * scale, s * scale, 3].
    """
    n, tokens, _ = target.shape
    side = round(tokens**0.5)
    pixels = target.reshape(n, side, side, token_size, token_size, 3).swapaxes(2, 3)
    images = pixels.reshape(n, side * token_size, side * token_size, 3)
    return enlarge(np.clip(0.5 + images / 4, 0, 1), scale)


def visible(images: np.ndarray, mask: np.ndarray, scale: int = SCALE) -> np.ndarray:
    """Draws patches with grey in place of the removed tokens.

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
    """Images float [n, s, s, 1 or 3] in [0, 1] as pictures, enlarged by `scale`."""
    large = images.repeat(scale, 1).repeat(scale, 2)
    return (np.broadcast_to(large, (*large.shape[:3], 3)) * 255).round().astype(np.uint8)


def _grey(images: np.ndarray) -> np.ndarray:
    return enlarge(images[..., None], 1)


def grid(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Arranges pictures of equal size in rows, on grey."""
    h, w, _ = rows[0][0].shape
    columns = max(map(len, rows))
    page = np.full((len(rows) * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), _BETWEEN, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            page[i * (h + GAP) :, j * (w + GAP) :][:h, :w] = picture
    return page


def png(picture: np.ndarray) -> bytes:
    """Encodes a picture as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
