"""The modules that a name or pattern without a match may have meant."""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vshift.text import list_names


def nearest_modules(pattern: str, modules: Mapping[str, nn.Module]) -> str:
    """The three names most like a pattern: as a whole, or in the first and the last part.

    BN layers come first for a pattern that speaks of norms.
    """
    is_of_norms = re.search("bn|norm", pattern, re.IGNORECASE) is not None

    def ends(name: str) -> str:
        parts = name.split(".")
        return f"{parts[0]}.{parts[-1]}"

    def likeness(name: str) -> tuple[bool, float]:
        pairs = ((pattern, name), (ends(pattern), ends(name)))
        ratios = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return is_of_norms and isinstance(modules[name], _BatchNorm), max(ratios)

    return list_names(heapq.nlargest(3, filter(None, modules), key=likeness))
