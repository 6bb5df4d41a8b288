"""Makes sam_hugging_face.json beside it: the names of SAM's weights in Hugging Face's transformers.

    pip install transformers==5.24.0 torch && python tests/golden/make_sam_names.py

The model is as tiny as that of make_sam.py; names do not depend on sizes but for the blocks.
"""

import json
from pathlib import Path

from transformers import SamConfig, SamModel
from transformers.models.sam.configuration_sam import (
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)


def main():
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=64, patch_size=16, window_size=3, global_attn_indexes=[1], mlp_dim=64,
            num_pos_feats=8,
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4
        ).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=24, iou_head_hidden_dim=12
        ).to_dict(),
    )  # fmt: skip
    shapes = {name: list(array.shape) for name, array in SamModel(config).state_dict().items()}
    path = Path(__file__).with_name("sam_hugging_face.json")
    path.write_text(json.dumps(shapes, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
