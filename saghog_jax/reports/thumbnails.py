"""Small pictures of pages as data URIs; unreadable images are reported with their reason."""

import base64
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.retrieval.embeddings import Embeddings

# WebP of this quality has half the size of a JPEG that looks the same.
_QUALITY = 45


def thumbnails(
    pages: Embeddings, rows: Iterable[int], side: int, max_pixels: int
) -> dict[int, dict]:
    """The picture of each row: `{"image": data URI, "size": [w, h]}`, or `{"missing": reason}`.

    Args:
      side: longer side of a picture in pixels; smaller pages keep their size.
      max_pixels: larger images are not decoded.
    """
    pictures: dict[int, dict] = {}
    # Sorted by path, so that an image with several boxes is decoded once.
    image: np.ndarray | None = None
    opened: Path | None = None
    reason = ""
    for row in sorted(set(rows), key=lambda row: (str(pages.table["path"][row]), row)):
        if pages.image(row) != opened:
            opened, image, reason = pages.image(row), None, ""
            try:
                image = load_page(opened, None, max_pixels)
            except PageError as error:
                reason = str(error)
        part = None if image is None else _crop(image, pages.box(row))
        if part is None:
            pictures[row] = {"missing": reason or "box outside of the image"}
        else:
            pictures[row] = {"image": data_uri(part, side), "size": part.shape[1::-1]}
    return pictures


def _crop(image: np.ndarray, box: tuple[int, int, int, int] | None) -> np.ndarray | None:
    if box is None:
        return image
    x0, y0, x1, y1 = box
    part = image[max(0, y0) : y1, max(0, x0) : x1]
    return part if part.size else None


def data_uri(image: np.ndarray, side: int) -> str:
    """The data URI of a picture uint8 [h, w, 3] as WebP, at most `side` pixels high and wide."""
    h, w = image.shape[:2]
    factor = side / max(h, w)
    if factor < 1:
        size = max(1, round(w * factor)), max(1, round(h * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_WEBP_QUALITY, _QUALITY]
    data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")
