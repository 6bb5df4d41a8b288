"""Page descriptors with their origin, so that only comparable descriptors are compared.

Axis letters: p pages, d width of a descriptor.
"""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.nested import flat

logger = logging.getLogger(__name__)

# Fields of the cutting rule in which comparable embeddings may differ: the resolution of a
# collection, and the number and selection of patches.
_FREE_RULE_FIELDS = ("rule", "scale", "max_patches_per_page", "pick", "descriptors")
_COMPARED = ("parts", "scales", "input", "pooling", "gmp_lambda", "patch_whitening")
# Fields of the section of a region backend that say where its files are, or change no mask.
_FREE_REGION_FIELDS = ("folder", "weights", "encoder", "decoder", "points_per_batch")
# Fields in plain words; other fields are called by their names.
_WORDS = {
    "descriptors": "descriptors",
    "power": "power normalisation",
    "weight": "weight in the similarity",
    "scales": "scales",
    "input": "input of the model",
    "pooling": "pooling",
    "gmp_lambda": "ridge of generalised max pooling",
    "patch_whitening": "whitening of the patches",
    "digests": "weights of the model",
    "compact": "numbers of each part",
    "regions.backend": "search for handwriting",
    "rule.patch_size": "side of a patch",
    "rule.grey": "grey conversion",
    "rule.binarization": "binarisation",
    "rule.detect_scale": "size at which keypoints are found",
    "rule.keypoint_on_ink": "rule that a keypoint lies on ink",
}
FORCE = "--config.force=True compares them in spite of this"


def comparable(recipe: Mapping) -> dict:
    """The part of a recipe, as read from JSON, that comparable embeddings share.

    Of the search for handwriting these are the backend and its settings. Folders, the number of
    workers and the limit of keypoints of a page do not count.
    """
    rule = {k: v for k, v in recipe["rule"].items() if k not in _FREE_RULE_FIELDS}
    rule = {"detect_scale": 0.0} | rule
    given = recipe.get("regions") or {"backend": "none"}
    backend = given["backend"]
    settings = given.get(backend, {}).items()
    regions = {
        "backend": backend,
        backend: {k: v for k, v in settings if k not in _FREE_REGION_FIELDS},
    }
    shared = {name: recipe[name] for name in _COMPARED}
    return shared | {"compact": recipe.get("compact", 0), "rule": rule, "regions": regions}


class PageDescriptors(np.ndarray):
    """Page descriptors float32 [p, d]; rows and slices keep `made_by`.

    Attributes:
      made_by: the properties that comparable descriptors share: `comparable` of their recipe, and
        the digests of the weights; None if unknown.
    """

    made_by: Mapping | None

    def __new__(
        cls, rows: Float[np.ndarray, "p d"], made_by: Mapping | None = None
    ) -> "PageDescriptors":
        array = np.asarray(rows, np.float32).view(cls)
        array.made_by = made_by
        return array

    def __array_finalize__(self, other: np.ndarray | None) -> None:
        self.made_by = getattr(other, "made_by", None)


def check_alike(
    first: Mapping, second: Mapping, names: tuple[str, str], force: bool = False
) -> None:
    """Checks that two sets of descriptors are comparable.

    Args:
      first, second: `PageDescriptors.made_by` of both.
      names: names of both in the message.
      force: a difference is a warning instead of an error.

    Raises:
      UserError: a field differs; the message names each such field in words, and both values.
    """
    found = [f"{words} {ours} and {theirs}" for words, ours, theirs in _differences(first, second)]
    if found:
        refuse_unless(
            force,
            f"{names[0]} and {names[1]} were embedded with different settings, so that distances "
            f"between their pages say little: {'; '.join(found)}",
        )


def refuse_unless(force: bool, message: str) -> None:
    """Refuses a comparison, or warns where it is forced.

    Raises:
      UserError: it is not forced.
    """
    if not force:
        raise UserError(f"{message}. Embed both alike, or {FORCE}")
    logger.warning(f"warning: {message}")


def _differences(first: Mapping, second: Mapping) -> Iterator[tuple[str, object, object]]:
    """The fields that both have and that differ: in words, and both values."""
    shared = [field for field in first if field in second and first[field] != second[field]]
    for field in shared:
        ours, theirs = first[field], second[field]
        if field == "parts":
            yield from _part_differences(ours, theirs)
        elif field == "digests":
            yield _WORDS[field], _weights(ours), _weights(theirs)
        elif isinstance(ours, Mapping):
            first_fields, second_fields = (flat({field: side}) for side in (ours, theirs))
            for name, value in first_fields.items():
                # Settings of another backend differ with the backend.
                if name in second_fields and value != second_fields[name]:
                    yield _words(name), value, second_fields[name]
        else:
            yield _words(field), ours, theirs


def _part_differences(first: list, second: list) -> Iterator[tuple[str, object, object]]:
    sides = [{part["descriptor"]: part for part in parts} for parts in (first, second)]
    if list(sides[0]) != list(sides[1]):
        yield (_WORDS["descriptors"], *(" + ".join(side) or "none" for side in sides))
    for name in (name for name in sides[0] if name in sides[1]):
        for field in ("power", "weight"):
            ours, theirs = (side[name][field] for side in sides)
            if ours != theirs:
                yield f"{_WORDS[field]} of {name}", f"{ours:g}", f"{theirs:g}"


def _weights(digests: Mapping) -> str:
    return " + ".join(f"{name} {digest[:12]}" for name, digest in digests.items())


def _words(field: str) -> str:
    """A field in words, with the name that it has in a config."""
    name = f"store.{field.removeprefix('rule.')}" if field.startswith("rule.") else field
    return f"{_WORDS[field]} ({name})" if field in _WORDS and name != _WORDS[field] else name
