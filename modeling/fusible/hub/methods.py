"""Published methods: names, summaries and papers. Nothing here needs torch or transformers."""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Method:
    """
    A published method.

    Args:
        name: as its authors write it.
        summary: what its models are, in half a sentence.
        paper: arXiv id.
        citation: BibTeX.
    """

    name: str
    summary: str
    paper: str
    citation: str


_FACTS = yaml.safe_load((Path(__file__).parent / "templates" / "methods.yaml").read_text(encoding="utf-8"))
METHODS = {model_type: Method(**facts) for model_type, facts in _FACTS.items()}


__all__ = ["METHODS", "Method"]
