"""`PageRecipe`: what a page descriptor is made of, from the cutting rule to weights of parts.

`finetune` writes the recipe into its run folder, `embed` reads it from there and records it in
meta.json, and `PageEncoder` follows it. No other module decides how parts are put together.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import precision
from saghog_jax.embedding import sift
from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.models.inputs import INPUTS
from saghog_jax.retrieval.aggregate import POOLINGS, concatenate, l2_normalize, power_norm

# Descriptors of a checkpoint: NetRVLAD vectors of a finetuned model, CLS features of an encoder.
LEARNED = ("netrvlad", "cls")
DESCRIPTORS = (*LEARNED, *map(sift.descriptor_name, sift.KINDS))
# Length of the sum of unit residuals of SIFT at found sizes (its pooled descriptor) up to which a
# page has little writing, and from which it has much. On validation pages fragments of 100 to 600
# keypoints had 13 to 52, whole images of 2,100 to 2,500 keypoints 68 to 232.
_LITTLE, _MUCH = 40.0, 80.0


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
    compact: numbers of each part of a compact descriptor (`compact.Projection`); 0: long ones.
    full: in compact descriptors, the weight of each kind of SIFT for pages with much writing, where
      it differs from that for pages with little writing; empty: it does not.
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
    compact: int = 0
    full: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or len(set(self.scales)) < len(self.scales):
            raise UserError(f"config.scales={self.scales}: give different positive factors")
        check_choice("config.pooling", self.pooling, POOLINGS)
        if self.gmp_lambda <= 0:
            raise UserError(f"config.gmp_lambda={self.gmp_lambda} must be positive")
        check_choice("input", self.input, INPUTS)
        if self.compact < 0:
            raise UserError(f"config.compact={self.compact} must not be negative")
        sift.check_weights(self.full)
        if self.full and set(self.full) != set(self.sift_weights):
            raise UserError(
                f"weights of pages with much writing are those of {sorted(self.full)}, but the "
                f"parts are SIFT of {sorted(self.sift_weights)}"
            )

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
        numbers = self.compact if config.compact is None else config.compact
        same = all(weight == known.get(kind, 0.0) for kind, weight in weights.items())
        rule = {f.name: config.store[f.name] for f in dataclasses.fields(Rule)}
        regions = self.regions
        if config.regions.backend is not None:
            regions = config.regions.to_dict()
        changed = replace(
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
            compact=numbers,
            # Weights that are given are those of all pages.
            full=self.full if numbers and same else {},
        )
        whitened = config.patch_whitening.mode != "none"
        unfitted = changed.unfitted_beside(self, whitened)
        if unfitted and config.compact:
            raise UserError(
                f"config.compact={config.compact}: compact descriptors were fitted with another "
                f"{unfitted}; give 0 for long descriptors"
            )
        return replace(changed, compact=0, full={}) if unfitted else changed

    def unfitted_beside(self, fitted: "PageRecipe", patches_whitened: bool = False) -> str:
        """The fields in which parts differ from those that a projection was fitted to, as text.

        Args:
          fitted: the recipe of the projection.
          patches_whitened: whether the descriptors of the patches are whitened.
        """
        pairs = {
            "power": (self.parts[0].power, fitted.parts[0].power),
            "scales": (self.scales, fitted.scales),
            "input": (self.input, fitted.input),
            # The mean differs from the sum by a factor alone.
            "pooling": (self.pooling in ("sum", "mean"), True),
            "patch_whitening": (patches_whitened, False),
        }
        return ", ".join(name for name, (mine, theirs) in pairs.items() if mine != theirs)

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
        if self.compact != other.compact:
            fields["compact"] = self.compact
        if self.pooling != "sum":
            fields |= {"pooling": self.pooling, "gmp_lambda": self.gmp_lambda}
        return fields

    def alone(self, descriptor: str) -> "PageRecipe":
        """The recipe of one descriptor of the same patches, to compare with."""
        power = self.parts[0].power if descriptor in LEARNED else sift.POWER
        return replace(self, parts=(PartRecipe(descriptor, power, 1.0),), full={})

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

    def part_rows(self, sums: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """The descriptors of each part: its scales concatenated with equal weights.

        Args:
          sums: see `join`.

        Returns:
          float32 [p, D] for each part, unit rows; zero where the part has no patch at any scale.
        """
        rows = []
        for part, scales in zip(self.parts, sums, strict=True):
            taken = self.scales_of(part)
            columns = [l2_normalize(power_norm(pooled, part.power)) for pooled in scales[:taken]]
            rows.append(concatenate(columns, [1 / taken] * taken))
        return rows

    def weights_of(self, sums: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """The weight of each part of a compact descriptor, by how much writing a page has.

        Between little and much writing weights change with the logarithm of its amount.

        Args:
          sums: see `join`.

        Returns:
          float64 [p, parts]; rows add up to 1.
        """
        names = [part.descriptor for part in self.parts]
        little = np.array([part.weight for part in self.parts])
        keypoints = sift.descriptor_name("keypoint")
        if not self.full or keypoints not in names:
            return np.tile(little, (len(sums[0][0]), 1))
        full = [self.full[kind] for kind in sift.KINDS if kind in self.full]
        amount = np.linalg.norm(sums[names.index(keypoints)][0].astype(np.float64), axis=1)
        share = np.log(np.maximum(amount, _LITTLE) / _LITTLE) / np.log(_MUCH / _LITTLE)
        share = np.minimum(share, 1)[:, None]
        return (1 - share) * little + share * np.array([1 - sum(full), *full])

    def to_json(self) -> dict:
        """As `from_json` reads it."""
        content = dataclasses.asdict(self) | {"rule": self.rule.settings()}
        # As in older versions, so that digests stay.
        for name in ("compact", "full"):
            if not content[name]:
                del content[name]
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
        if self.full:
            weights = " and ".join(f"{weight:g} ({kind})" for kind, weight in self.full.items())
            text += f", for pages with much writing {weights}"
        if self.compact:
            text += f", each part projected to {self.compact} numbers"
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


def listed(scales: Sequence[float]) -> str:
    """Scales as text."""
    return ", ".join(f"{scale:g}" for scale in scales)
