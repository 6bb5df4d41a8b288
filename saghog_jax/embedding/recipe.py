"""`PageRecipe`: what a page descriptor is made of, from the cutting rule to weights of parts.

`finetune` writes the recipe into its run folder, `embed` reads it from there and records it in
meta.json, and `PageEncoder` follows it. No other module decides how parts are put together.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import precision
from saghog_jax.embedding import sift
from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.cutting.rules import published_rule
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.models.inputs import INPUTS
from saghog_jax.retrieval.aggregate import POOLINGS, concatenate, l2_normalize, power_norm

FILE = "recipe.json"
# Descriptors of a checkpoint: NetRVLAD vectors of a finetuned model, CLS features of an encoder.
LEARNED = ("netrvlad", "cls")
DESCRIPTORS = (*LEARNED, *map(sift.descriptor_name, sift.KINDS))


@dataclass(frozen=True)
class PartRecipe:
    """One part of a page descriptor.

    descriptor: of the patches, one of `DESCRIPTORS`.
    power: exponent of the signed power normalisation of the pooled descriptor; 1 disables it.
    weight: fraction of the similarity of two pages that this part decides.
    """

    descriptor: str
    power: float
    weight: float

    def __post_init__(self) -> None:
        check_choice("descriptor", self.descriptor, DESCRIPTORS)
        if not 0 < self.power <= 1:
            raise UserError(f"config.power={self.power} must lie in (0, 1]")


@dataclass(frozen=True)
class PageRecipe:
    """From a page to its descriptor.

    A page is cut by `rule` at each of `scales`; every part describes the patches, pools them by
    scale, applies its power normalisation and L2; parts and scales are weighted and concatenated.
    In one pass (`rule.detect_scale`) SIFT of the page at the keypoints is the same at all scales:
    this part is taken at the first scale alone.

    parts: weights add up to 1.
    scales: factors besides those of the rule and the manifest.
    input: what the learned descriptor reads, `page` or `binary`.
    pooling, gmp_lambda: see `aggregate.PagePool`.
    patch_whitening: `none`, or how the patch descriptors were whitened before pooling.
    precision: `float32`, `mixed` or `auto` (as this machine can).
    max_pixels: of the largest accepted image.
    regions: the section of configs/regions.py that finds the handwriting.
    """

    parts: tuple[PartRecipe, ...]
    rule: Rule
    scales: tuple[float, ...] = (1.0,)
    input: str = "binary"
    pooling: str = "sum"
    gmp_lambda: float = 1.0
    patch_whitening: str = "none"
    precision: str = "auto"
    max_pixels: int = 200_000_000
    regions: Mapping = field(default_factory=lambda: {"backend": "none"})

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or len(set(self.scales)) < len(self.scales):
            raise UserError(f"config.scales={self.scales}: give different positive factors")
        check_choice("config.pooling", self.pooling, POOLINGS)
        if self.gmp_lambda <= 0:
            raise UserError(f"config.gmp_lambda={self.gmp_lambda} must be positive")
        check_choice("input", self.input, INPUTS)

    @property
    def cutting_rule(self) -> Rule:
        """The rule, with SIFT descriptors of the keypoints where a part reads them."""
        keypoints = sift.descriptor_name("keypoint")
        if any(part.descriptor == keypoints for part in self.parts):
            return replace(self.rule, descriptors=True)
        return self.rule

    @property
    def sift_weights(self) -> dict[str, float]:
        """The weight of each kind of SIFT that is a part."""
        weights = {part.descriptor: part.weight for part in self.parts}
        names = {kind: sift.descriptor_name(kind) for kind in sift.KINDS}
        return {kind: weights[name] for kind, name in names.items() if name in weights}

    def resolved(self) -> "PageRecipe":
        """This recipe with the precision `auto` replaced by what suits this machine."""
        return replace(self, precision=precision.resolve_name(self.precision))

    def scales_of(self, part: PartRecipe) -> int:
        """The number of scales that a part takes, the first ones."""
        keypoints = part.descriptor == sift.descriptor_name("keypoint")
        return 1 if keypoints and self.rule.detect_scale else len(self.scales)

    def factors(self, page_scale: float = 1.0) -> list[float]:
        """Factors by which a page is resized, one for each scale; `page_scale` is the page's."""
        return [self.rule.scale * (page_scale * scale) for scale in self.scales]

    def with_config(self, config: ConfigDict) -> "PageRecipe":
        """This recipe with the fields of configs/embed.py that are given (not None).

        Raises:
          UserError: an unknown choice, or weights that leave nothing to the checkpoint.
        """
        learned = self.parts[0]
        power = learned.power if config.power is None else config.power
        weights = {kind: config.sift[kind] for kind in sift.KINDS}
        known = self.sift_weights
        weights = {k: known.get(k, 0.0) if w is None else w for k, w in weights.items()}
        rule = {f.name: config.store[f.name] for f in dataclasses.fields(Rule)}
        regions = self.regions
        if config.regions.backend is not None:
            regions = config.regions.to_dict()
        return replace(
            self,
            parts=recipe_parts(learned.descriptor, power, weights),
            rule=replace(self.rule, **{k: v for k, v in rule.items() if v is not None}),
            scales=self.scales if config.scales is None else tuple(config.scales),
            input=self.input if config.input == "auto" else config.input,
            pooling=config.pooling,
            gmp_lambda=config.gmp_lambda,
            precision=config.precision,
            max_pixels=config.data.max_pixels,
            regions=regions,
        )

    def fields_beside(self, other: "PageRecipe") -> dict[str, object]:
        """The fields of configs/embed.py that make this recipe of another one, by full name.

        Only those that decide whether descriptors are comparable, and the scale of the pages; the
        search for handwriting is a section of its own.
        """
        fields: dict[str, object] = {}
        for rule_field in dataclasses.fields(Rule):
            value = getattr(self.rule, rule_field.name)
            free = rule_field.name in ("rule", "descriptors", "pick", "max_patches_per_page")
            if not free and value != getattr(other.rule, rule_field.name):
                fields[f"store.{rule_field.name}"] = value
        mine, theirs = ({"scales": r.scales, "input": r.input} for r in (self, other))
        fields |= {name: value for name, value in mine.items() if value != theirs[name]}
        if self.parts[0].power != other.parts[0].power:
            fields["power"] = self.parts[0].power
        for kind in sift.KINDS:
            weight = self.sift_weights.get(kind, 0.0)
            if weight != other.sift_weights.get(kind, 0.0):
                fields[f"sift.{kind}"] = weight
        if self.pooling != "sum":
            fields |= {"pooling": self.pooling, "gmp_lambda": self.gmp_lambda}
        return fields

    def alone(self, descriptor: str) -> "PageRecipe":
        """The recipe of one descriptor of the same patches, to compare with."""
        power = self.parts[0].power if descriptor in LEARNED else sift.POWER
        return replace(self, parts=(PartRecipe(descriptor, power, 1.0),))

    def join(self, sums: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Page descriptors of pooled patch descriptors.

        Args:
          sums: for each part, for each scale, pooled descriptors of the pages float32 [p, d].

        Returns:
          float32 [p, D], unit rows; zero where a page has no patch at any scale.
        """
        columns, weights = [], []
        for part, scales in zip(self.parts, sums, strict=True):
            taken = self.scales_of(part)
            for pooled in scales[:taken]:
                columns.append(l2_normalize(power_norm(pooled, part.power)))
                weights.append(part.weight / taken)
        return concatenate(columns, weights)

    def to_json(self) -> dict:
        """As `from_json` reads it."""
        content = dataclasses.asdict(self) | {"rule": self.rule.settings()}
        return json.loads(json.dumps(content))

    @classmethod
    def from_json(cls, content: Mapping) -> "PageRecipe":
        """The recipe that `to_json` wrote.

        Raises:
          UserError: it is not one.
        """
        try:
            return cls(
                **{
                    **content,
                    "parts": tuple(PartRecipe(**part) for part in content["parts"]),
                    "scales": tuple(content["scales"]),
                    "rule": Rule(**content["rule"]),
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"not a recipe of page descriptors: {error}") from None

    def describe(self) -> str:
        """In words, from the pooling to the concatenation."""
        learned = self.parts[0]
        text = (
            "" if self.patch_whitening == "none" else f"patches whitened ({self.patch_whitening}), "
        )
        text += f"{self.pooling}, power {learned.power:g}, L2"
        for kind, weight in self.sift_weights.items():
            if len(self.parts) > 1:
                text += f", {weight:g} of the similarity from SIFT ({kind})"
        if len(self.scales) > 1:
            text += f", concatenated at scales {listed(self.scales)}"
        return text


def recipe_parts(
    descriptor: str, power: float, sift_weights: Mapping[str, float]
) -> tuple[PartRecipe, ...]:
    """The learned part, and those of SIFT that have a weight.

    Raises:
      UserError: weights that are negative or leave nothing to the learned part.
    """
    sift.check_weights(sift_weights)
    # Always in this order, whatever the order in which the weights are given.
    weights = {kind: sift_weights[kind] for kind in sift.KINDS if sift_weights.get(kind)}
    return (
        PartRecipe(descriptor, power, 1 - sum(weights.values())),
        *(PartRecipe(sift.descriptor_name(k), sift.POWER, w) for k, w in weights.items()),
    )


def default_recipe(descriptor: str, source: str) -> PageRecipe:
    """The recipe of a checkpoint without one: power .4, all patches of a page at its own scale.

    Args:
      descriptor: `netrvlad` or `cls`.
      source: what the model reads, `page` or `binary`.
    """
    return PageRecipe(parts=recipe_parts(descriptor, 0.4, {}), rule=page_rule(), input=source)


def page_rule() -> Rule:
    """How pages are cut to be embedded, unless a recipe says otherwise.

    The published rule `eval`, binarised by Otsu as in finetuning: on training pages a little better
    than ISauvola.
    """
    return replace(published_rule("eval"), binarization="otsu", max_patches_per_page=-1)


def finetuned_recipe(config: ConfigDict) -> PageRecipe:
    """The recipe of a finetuning config (its section `page`), for the collection it is trained on.

    Raises:
      UserError: a choice that is not possible.
    """
    page = config.page
    rule = replace(
        page_rule(),
        patch_size=config.store.patch_size,
        scale=config.store.scale,
        detect_scale=config.store.detect_scale,
        keypoint_cell=config.store.keypoint_cell,
        keypoint_on_ink=page.keypoint_on_ink,
        max_patches_per_page=page.max_patches_per_page,
    )
    return PageRecipe(
        parts=recipe_parts("netrvlad", page.power, page.sift),
        rule=rule,
        scales=tuple(page.scales),
        input=config.input,
        max_pixels=config.data.max_pixels,
        regions=config.regions.to_dict(),
    )


def write_recipe(recipe: PageRecipe, run_folder: Path) -> None:
    """Keeps the recipe in a run folder."""
    with atomic_write(run_folder / FILE, "w") as file:
        file.write(json.dumps(recipe.to_json(), indent=2) + "\n")


def read_recipe(run_folder: Path) -> PageRecipe | None:
    """The recipe of a run folder; None where it has none (pretrain, convert, older versions).

    Raises:
      UserError: a damaged file.
    """
    path = run_folder / FILE
    if not path.exists():
        return None
    try:
        return PageRecipe.from_json(json.loads(path.read_text()))
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from None


def listed(scales: Sequence[float]) -> str:
    """Scales as text."""
    return ", ".join(f"{scale:g}" for scale in scales)
