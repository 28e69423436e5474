"""A plain vision Transformer on point clouds, a backbone of the methods."""
