"""ml_collections configs, one a stage; `configs/NAME.py:argument` selects a recipe."""
