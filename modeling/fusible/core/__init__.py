"""The concept: modules and models with two forms, which knows no method."""
