"""Reads Tatoeba's sentence pairs and splits them without overlap."""

from __future__ import annotations

import json
import random
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from translation_study.settings import Sizes

__all__ = ["HELD_OUT", "Sentence", "pairs_of", "read", "read_pairs", "split", "write"]

#: The parts whose sentences the policy never saw in supervised training.
HELD_OUT = ("preference", "study", "training", "development", "test")

_SEED = 20240311
_MAX_CHARS = 80
_FEWEST_WORDS = 5


@dataclass(frozen=True, slots=True)
class Sentence:
    """A Spanish sentence with all its English translations."""

    id: str
    source: str
    references: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the policy is given: it writes the translation after the line break."""
        return f"{self.source}\n"


def read_pairs(archive: Path) -> list[tuple[str, str]]:
    """Return the pairs (Spanish, English) of `tatoeba_es_en.zip`, short ones only."""
    with zipfile.ZipFile(archive) as files:
        lines = files.read("spa-eng/spa.txt").decode("utf-8").splitlines()
    columns = (line.split("\t")[:2] for line in lines)
    return [
        (spanish.strip(), english.strip())
        for english, spanish in columns
        if max(len(english), len(spanish)) <= _MAX_CHARS
    ]


def split(pairs: Iterable[tuple[str, str]], sizes: Sizes) -> dict[str, list[Sentence]]:
    """Split into `HELD_OUT` and `policy`; no sentence of either language is in two parts.

    Only sentences whose translations have at least five words are held out: in shorter ones there
    is little to get wrong.
    """
    references: dict[str, list[str]] = defaultdict(list)
    sources: dict[str, list[str]] = defaultdict(list)
    for spanish, english in pairs:
        references[spanish].append(english)
        sources[english].append(spanish)
    order = sorted(references)
    random.Random(_SEED).shuffle(order)
    parts: dict[str, list[Sentence]] = {name: [] for name in (*HELD_OUT, "policy")}
    wanted = {name: getattr(sizes, f"{name}_prompts") for name in HELD_OUT}
    taken: set[str] = set()
    for spanish in order:
        if spanish in taken:
            continue
        part = next((name for name in HELD_OUT if len(parts[name]) < wanted[name]), "policy")
        long_enough = min(len(one.split()) for one in references[spanish]) >= _FEWEST_WORDS
        if part != "policy" and not long_enough:
            part = "policy"
        linked = _linked(spanish, references, sources)
        if part == "policy":
            found = [one for one in linked if one not in taken]
            parts["policy"] += [_sentence(one, references) for one in found]
        else:
            # Other sentences with the same translations are left out of every part.
            parts[part].append(_sentence(spanish, references))
        taken |= linked
    return parts


def _linked(
    spanish: str, references: dict[str, list[str]], sources: dict[str, list[str]]
) -> set[str]:
    """Return the Spanish sentences that share translations, directly or through others."""
    found, waiting = {spanish}, [spanish]
    while waiting:
        for english in references[waiting.pop()]:
            for other in sources[english]:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
    return found


def _sentence(spanish: str, references: dict[str, list[str]]) -> Sentence:
    number = f"{zlib.crc32(spanish.encode()):08x}"
    return Sentence(number, spanish, tuple(dict.fromkeys(references[spanish])))


def pairs_of(sentences: Iterable[Sentence]) -> list[tuple[str, str]]:
    """Return each sentence with each of its translations."""
    return [(one.source, reference) for one in sentences for reference in one.references]


def write(sentences: Iterable[Sentence], file: Path) -> None:
    """Write sentences as JSON lines."""
    lines = (json.dumps(asdict(one), ensure_ascii=False) for one in sentences)
    file.write_text("".join(f"{line}\n" for line in lines))


def read(file: Path) -> list[Sentence]:
    """Read sentences that `write` wrote."""
    rows = map(json.loads, file.read_text().splitlines())
    return [Sentence(row["id"], row["source"], tuple(row["references"])) for row in rows]
