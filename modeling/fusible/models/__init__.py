"""Models, one folder for each method."""
