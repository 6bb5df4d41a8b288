"""Training classes without writer labels: clusters of SIFT descriptors, linked pages."""
