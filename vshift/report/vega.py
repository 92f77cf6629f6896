"""Vega, Vega-Lite and Vega-Embed as the one script that a page holds."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version

from vshift.cache import cache_folder, keep


def script() -> str:
    """The libraries in one text.

    vl-convert bundles them, which takes four seconds; so they are kept in the cache folder, by its
    version. A cache that cannot be written is done without.
    """
    import vl_convert

    path = cache_folder() / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # all of it
    keep(path, bundle)
    return bundle
