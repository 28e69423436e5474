"""ZeroI2V (ECCV 2024)."""
