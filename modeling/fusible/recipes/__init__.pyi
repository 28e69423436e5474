"""Public names and their modules. Each is imported when it is first used."""

from .recipe import Recipe as Recipe
