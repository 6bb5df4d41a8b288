"""Writer retrieval: a masked autoencoder of handwriting, NetRVLAD, and what is around them."""
