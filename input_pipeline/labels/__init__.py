"""Classes without writers: clusters of SIFT descriptors, linked pages."""
