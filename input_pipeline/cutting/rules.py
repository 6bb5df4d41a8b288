"""The cutting rules of the published code, by name; configs/common.py explains each field."""

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import check_choice

RULES = ("pretrain", "offline", "offline_color", "eval", "eval_color")


def published_rule(name: str) -> Rule:
    """The rule with a published name.

    `pretrain` keeps patches with 8 to 80 % ink; `offline` binarises by Otsu and keeps SIFT
    descriptors for pseudo labels, `offline_color` chooses by edges instead of ink; `eval` needs ink
    under the keypoint, `eval_color` chooses by black and white pixels instead of ink.

    Raises:
      UserError: an unknown name.
    """
    check_choice("store.rule", name, RULES)
    offline = name.startswith("offline")
    return Rule(
        rule=name,
        patch_size=32,
        scale=1.0,
        grey="opencv" if offline else "pillow",
        binarization="otsu" if offline else "isauvola",
        detect_on="binary",
        sift_sigma=1.6,
        keep={"offline_color": "edges", "eval_color": "grey"}.get(name, "ink"),
        min_ink=0.08 if name == "pretrain" else 0.01,
        max_ink=0.8 if name == "pretrain" else 1.0,
        max_black=0.5,
        max_white=0.95,
        min_edges=0.1,
        keypoint_on_ink=name.startswith("eval"),
        border="drop" if offline else "white",
        centre_if_empty=False,
        descriptors=offline,
        pick="even",
        max_patches_per_page=1000,
    )
