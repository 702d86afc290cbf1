"""Which characters a Chinese text is written in: simplified or traditional ones.

A character counts as simplified if the national standard GB 2312 has it and Big5 does not, as traditional the
other way round. Most characters are in both, and tell nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Literal, get_args

Script = Literal["simplified", "traditional"]
SCRIPTS: tuple[Script, ...] = get_args(Script)
# Lines that are looked at; a line of fewer characters of either kind tells nothing.
LINES, FEWEST = 500, 2
_IDEOGRAPHS = range(0x4E00, 0xA000)


@cache
def _only() -> dict[str, Script]:
    """Character → the script that alone has it."""
    scripts: dict[str, Script] = {}
    for character in map(chr, _IDEOGRAPHS):
        national, big5 = (_encodes(character, encoding) for encoding in ("gb2312", "big5"))
        if national != big5:
            scripts[character] = "simplified" if national else "traditional"
    return scripts


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def line_script(line: str) -> Script | None:
    """The script of most of a line's telling characters; None where there are too few, or as many of both."""
    only = _only()
    found = Counter(only[character] for character in line if character in only)
    simplified, traditional = (found[script] for script in SCRIPTS)
    if found.total() < FEWEST or simplified == traditional:
        return None
    return "simplified" if simplified > traditional else "traditional"


def count_scripts(lines: Iterable[str]) -> Counter[Script]:
    """Number of lines in each script, of the first LINES that tell."""
    telling = (script for line in lines if (script := line_script(line)) is not None)
    return Counter(islice(telling, LINES))


def named_script(language: str) -> Script | None:
    """The script that a language's name demands: `zh-Hans`, `zh_Hant`, `zh-TW`; None: either."""
    tags = set(language.lower().replace("_", "-").split("-")[1:])
    if tags & {"hans", "cn", "sg"}:
        return "simplified"
    return "traditional" if tags & {"hant", "tw", "hk", "mo"} else None
