"""Collections of page images: manifests, IIIF, folders, decoding."""
