"""Matches as W3C web annotations (a IIIF annotation page), for viewers and other programs."""

import json
import os
import urllib.parse
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.frames import file_of
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking

CONTEXT = "http://iiif.io/api/presentation/3/context.json"
_NAMES = uuid.uuid5(uuid.NAMESPACE_URL, CONTEXT)


def write(
    path: Path,
    queries: Embeddings,
    gallery: Embeddings,
    ranking: Ranking,
    shares: np.ndarray | None = None,
    decisions: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Writes an annotation page: one annotation of the query for each match.

    The body of an annotation names the matching page, its rank and distance, with `shares` also the
    calibrated fraction, and the decision if there is one. A page of a IIIF manifest is named by its
    canvas, any other page by the path of its image relative to the file. A box becomes a selector
    in pixels of the image.

    Args:
      shares: [q, k], see `tables.write_ranking`.
      decisions: by the ids of query and match, see `decisions.of_pages`.
    """
    decisions = decisions or {}
    items = []
    for row in range(len(queries)):
        query = str(queries.page_ids[row])
        target = _resource(queries, row, path.parent)
        for i, (other, distance) in enumerate(ranking.hits(row)):
            page = str(gallery.page_ids[other])
            description = f"rank {i + 1}, distance {distance:.4f}"
            if gallery.writers[other]:
                description += f", writer {gallery.writers[other]}"
            if shares is not None and not np.isnan(shares[row, i]):
                percent = f"{100 * shares[row, i]:.0f} %"
                description += f", {percent} of the pairs at that distance by one writer"
            match = _resource(gallery, other, path.parent)
            if isinstance(match, str):
                match = {"type": "SpecificResource", "source": match}
            body = [{**match, "purpose": "linking"}, _text("describing", description)]
            decision = decisions.get((query, page))
            if decision is not None:
                body.append(_text("assessing", decision))
            items.append(
                {
                    "id": uuid.uuid5(_NAMES, json.dumps([query, page])).urn,
                    "type": "Annotation",
                    "motivation": "linking" if decision is None else "assessing",
                    "target": target,
                    "body": body,
                }
            )
    name = uuid.uuid5(_NAMES, json.dumps([item["id"] for item in items])).urn
    content = {"@context": CONTEXT, "id": name, "type": "AnnotationPage", "items": items}
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")


def _text(purpose: str, value: str) -> dict:
    return {"type": "TextualBody", "purpose": purpose, "format": "text/plain", "value": value}


def _resource(pages: Embeddings, row: int, folder: Path) -> str | dict:
    source = str(pages.table["canvas"][row]) if "canvas" in pages.table else ""
    if not source:
        image = os.path.relpath(file_of(pages.image(row)).resolve(), folder.resolve())
        source = urllib.parse.quote(Path(image).as_posix())
    box = pages.box(row)
    region = f"{box[0]},{box[1]},{box[2] - box[0]},{box[3] - box[1]}" if box else ""
    if "canvas" in pages.table and "place" in pages.table and source:
        region = str(pages.table["place"][row])  # boxes refer to the image, not to the canvas
    if not region:
        return source
    selector = {
        "type": "FragmentSelector",
        "conformsTo": "http://www.w3.org/TR/media-frags/",
        "value": f"xywh={region}",
    }
    return {"type": "SpecificResource", "source": source, "selector": selector}
