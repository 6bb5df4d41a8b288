"""From pages to page descriptors: describers of patches, pooling, embeddings folders."""
