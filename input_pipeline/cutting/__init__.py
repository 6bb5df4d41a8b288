"""From a page to patches: binarisation, keypoints, windows."""
