"""Page descriptors that know how they were made, so that only comparable ones are compared."""

from collections.abc import Mapping

import numpy as np

from saghog_jax.input_pipeline.errors import UserError

# Fields of the cutting rule in which comparable embeddings may differ: the resolution of a
# collection, and how many of the patches are taken.
_FREE_RULE_FIELDS = ("rule", "scale", "max_patches_per_page", "pick", "descriptors")
_COMPARED = ("parts", "scales", "input", "pooling", "gmp_lambda", "patch_whitening")


def comparable(recipe: Mapping) -> dict:
    """What two embeddings must share to be compared, of a recipe as JSON has it."""
    rule = {k: v for k, v in recipe["rule"].items() if k not in _FREE_RULE_FIELDS}
    return {name: recipe[name] for name in _COMPARED} | {"rule": rule}


class PageDescriptors(np.ndarray):
    """Page descriptors float32 [p, d]; rows and slices of them keep `made_by`.

    made_by: what descriptors must share to be compared: `comparable` of their recipe, and the
      digests of the weights; None where that is unknown.
    """

    made_by: Mapping | None

    def __new__(cls, rows: np.ndarray, made_by: Mapping | None = None) -> "PageDescriptors":
        array = np.asarray(rows, np.float32).view(cls)
        array.made_by = made_by
        return array

    def __array_finalize__(self, other: np.ndarray | None) -> None:
        self.made_by = getattr(other, "made_by", None)


def check_alike(first: Mapping, second: Mapping, names: tuple[str, str]) -> None:
    """Refuses descriptors that were made in different ways.

    Args:
      first, second: `PageDescriptors.made_by`.
      names: what the message calls the two.

    Raises:
      UserError: they differ; names the first field that does, and both values.
    """
    for field in (field for field in first if field in second):
        if first[field] != second[field]:
            raise UserError(
                f"{names[0]} was embedded with {field} {first[field]!r}, {names[1]} with "
                f"{second[field]!r}: embed both alike"
            )
