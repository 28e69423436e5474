"""S4 (ICLR 2022) and its diagonal form S4D."""
