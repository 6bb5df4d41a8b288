"""Cuts patches from pages: binarisation, keypoints, windows."""
