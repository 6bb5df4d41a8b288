"""Page descriptors with their origin, so that only comparable descriptors are compared.

Axis letters: p pages, d width of a descriptor.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from saghog_jax.input_pipeline.errors import UserError

# Fields of the cutting rule in which comparable embeddings may differ: the resolution of a
# collection, and the number and selection of patches.
_FREE_RULE_FIELDS = ("rule", "scale", "max_patches_per_page", "pick", "descriptors")
_COMPARED = ("parts", "scales", "input", "pooling", "gmp_lambda", "patch_whitening")


def comparable(recipe: Mapping) -> dict:
    """The part of a recipe, as read from JSON, that comparable embeddings share."""
    rule = {k: v for k, v in recipe["rule"].items() if k not in _FREE_RULE_FIELDS}
    return {name: recipe[name] for name in _COMPARED} | {"rule": rule}


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


def check_alike(first: Mapping, second: Mapping, names: tuple[str, str]) -> None:
    """Checks that two sets of descriptors are comparable.

    Args:
      first, second: `PageDescriptors.made_by` of both.
      names: names of both in the message.

    Raises:
      UserError: a field differs; the message names the first such field and both values.
    """
    for field in (field for field in first if field in second):
        if first[field] != second[field]:
            raise UserError(
                f"{names[0]} was embedded with {field} {first[field]!r}, {names[1]} with "
                f"{second[field]!r}: embed both alike"
            )
