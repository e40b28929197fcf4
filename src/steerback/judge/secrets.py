"""Keys out of everything that is kept or shown: providers echo them in their errors."""

from __future__ import annotations

import os
import re

HIDDEN = "[hidden key]"
_NAMED = re.compile(r"(?:key|token|secret|password|passwd|credentials?)(?:_id)?$", re.IGNORECASE)
_SHAPED = re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|key)[-_][A-Za-z0-9_-]{16,}|\bAIza[\w-]{30,}")
_BEARER = re.compile(r"(?i)(\bbearer\s+|\bapi[-_]key[\"']?\s*[:=]\s*[\"']?)[^\s\"',;}]{8,}")
_SHORTEST = 12
"""Characters below which an environment value is too common a text to be hidden."""


def hide_known(text: str) -> str:
    """The text without the keys in the environment: for answers, in which code that merely looks as
    if it held a key must stay as it is."""
    known = {v for name, v in os.environ.items() if _NAMED.search(name) and len(v) >= _SHORTEST}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def redact(text: str) -> str:
    """The text without the keys in the environment, nor anything of a key's shape: for errors."""
    return _BEARER.sub(rf"\1{HIDDEN}", _SHAPED.sub(HIDDEN, hide_known(text)))
