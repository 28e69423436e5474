"""README and docs as blocks of text, and the sizes of small models for their examples."""

import re
from pathlib import Path
from typing import NamedTuple

from .paths import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE_PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "modeling" / "fusible" / "models" / "README.md"]
BLOCK = re.compile(r"(?P<comment><!--[^\n]*-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURE = 224
TINY = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_VIT = {"model_type": "vit", **TINY, "image_size": PICTURE, "patch_size": 56}


class Block(NamedTuple):
    language: str
    text: str
    line: int  # of the page, on which the text begins
    comment: str


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text()
    found = [
        Block(m["language"], m["text"], text.count("\n", 0, m.start("text")), m["comment"] or "")
        for m in BLOCK.finditer(text)
    ]
    return [block for block in found if block.language in languages]
