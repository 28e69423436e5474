"""Public names and their modules. Each is imported when it is first used."""

from .hippo import hippo as hippo, initial_state_space as initial_state_space
