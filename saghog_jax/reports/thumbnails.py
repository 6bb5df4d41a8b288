"""Small pictures of pages as data URIs; unreadable images are reported with their reason."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.retrieval.embeddings import Embeddings

# WebP of this quality has half the size of a JPEG that looks the same.
_QUALITY = 45
# OpenCV writes WebP without losses if the quality is above 100.
_LOSSLESS = 101


def thumbnail(part: np.ndarray | str, side: int) -> dict:
    """`{"image": data URI, "size": [w, h]}` of a page of `read_pages`, or `{"missing": reason}`.

    Args:
      side: longer side of the picture in pixels; smaller pages keep their size.
    """
    if isinstance(part, str):
        return {"missing": part}
    return {"image": data_uri(part, side), "size": part.shape[1::-1]}


def read_pages(
    pages: Embeddings, rows: Iterable[int], max_pixels: int
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Each row with its page uint8 [h, w, 3], RGB, or with the reason why it cannot be read.

    Args:
      max_pixels: larger images are not decoded.
    """
    # Sorted by path, so that an image with several boxes is decoded once.
    image: np.ndarray | str = ""
    opened: Path | None = None
    for row in sorted(set(rows), key=lambda row: (str(pages.table["path"][row]), row)):
        if pages.image(row) != opened:
            opened = pages.image(row)
            try:
                image = load_page(opened, None, max_pixels)
            except PageError as error:
                image = str(error)
        yield row, image if isinstance(image, str) else _crop(image, pages.box(row))


def _crop(image: np.ndarray, box: tuple[int, int, int, int] | None) -> np.ndarray | str:
    if box is None:
        return image
    x0, y0, x1, y1 = box
    part = image[max(0, y0) : y1, max(0, x0) : x1]
    return part if part.size else "box outside of the image"


def at_most(image: np.ndarray, side: int) -> np.ndarray:
    """A picture uint8 [h, w, c], reduced until it is at most `side` pixels high and wide."""
    h, w = image.shape[:2]
    factor = side / max(h, w)
    if factor >= 1:
        return image
    size = max(1, round(w * factor)), max(1, round(h * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def data_uri(image: np.ndarray, side: int, lossless: bool = False) -> str:
    """The data URI of a picture uint8 [h, w, 3] as WebP, at most `side` pixels high and wide."""
    image = cv2.cvtColor(at_most(image, side), cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS if lossless else _QUALITY]
    data = cv2.imencode(".webp", image, quality)[1]
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def reduced(uri: str, side: int) -> str:
    """A data URI of `data_uri` with its picture reduced to at most `side` pixels."""
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return data_uri(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), side)
