"""One HTML file from the modules of the page: scripts, styles and data inside, no other host."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from urllib.parse import quote

__all__ = ["bundled", "json_text", "policy_of"]

_PAGE = files("alarm_service") / "page"

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function|const|class) (\w+)", re.MULTILINE)
_OTHER_FORM = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)

_SCRIPT_TAG = re.compile(r'<script type="module" src="([\w.]+)"></script>')
_STYLE_TAG = re.compile(r'<link rel="stylesheet" href="([\w.]+)">\s*')
_ICON_TAG = re.compile(r'href="icon\.svg"')


def bundled(template: str, data: Mapping[str, Iterable[str]], *, connects: bool = False) -> str:
    """Return a page of the folder ``page/`` with all that it loads inside.

    ``data`` maps the id of a data block to its lines, each of them JSON of `json_text`. With
    ``connects`` the page may fetch from the server that it came from.
    """
    page = (_PAGE / template).read_text("utf-8")
    style = "".join((_PAGE / name).read_text("utf-8") for name in _STYLE_TAG.findall(page))
    (entry,) = _SCRIPT_TAG.findall(page)
    script = _script(entry)
    icon = quote((_PAGE / "icon.svg").read_text("utf-8"), safe="")
    policy = policy_of(script, style, connects=connects)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    blocks = "".join(
        f'<script type="application/json" id="{name}">{_joined(lines)}</script>\n'
        for name, lines in data.items()
    )
    page = _STYLE_TAG.sub("", page)
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n    {meta}', 1)
    page = _ICON_TAG.sub(lambda _: f'href="data:image/svg+xml,{icon}"', page)
    page = page.replace("</head>", f"  <style>{style}</style>\n  </head>", 1)
    return _SCRIPT_TAG.sub(
        lambda _: f'{blocks}<script type="module">{script}</script>', page, count=1
    )


def policy_of(script: str, style: str, *, connects: bool = False) -> str:
    """Return the policy that allows exactly this script and this style sheet."""
    allowed = "connect-src 'self'; " if connects else ""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        f"{allowed}img-src data:; base-uri 'none'; form-action 'none'"
    )


def json_text(value: object) -> str:
    """Return a value as JSON in one line that no HTML parser takes for markup.

    Lone surrogates, which UTF-8 cannot encode, become JSON escapes. Raises `ValueError` for NaN
    and infinities.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.encode(errors="backslashreplace").decode()
    return escaped.replace("<", "\\u003c")


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script(entry: str) -> str:
    """Return a module and those that it imports as one script, each in a scope of its own."""
    parts: dict[str, str] = {}
    _collect(entry, parts, ())
    script = f'"use strict";\n{"".join(parts.values())}'
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("a script of the page has markup that would end its element")
    return script


def _collect(name: str, parts: dict[str, str], importers: tuple[str, ...]) -> None:
    if name in importers:
        raise ValueError(f"modules of the page import each other: {' -> '.join(importers)}")
    source = (_PAGE / name).read_text("utf-8")
    for _, imported in _IMPORT.findall(source):
        if imported not in parts:
            _collect(imported, parts, (*importers, name))
    exported = [found for _, found in _EXPORT.findall(source)]
    body = _IMPORT.sub(_as_constants, source)
    body = _EXPORT.sub(r"\1 \2", body)
    if other := _OTHER_FORM.search(body):
        raise ValueError(f"{name} has {other.group()!r}, a form that is not bundled")
    returned = f"return {{ {', '.join(exported)} }};\n" if exported else ""
    parts[name] = f"const {_variable(name)} = (() => {{\n{body}{returned}}})();\n"


def _as_constants(found: re.Match[str]) -> str:
    names = re.sub(r"\s+as\s+", ": ", " ".join(found[1].split()))
    return f"const {{ {names} }} = {_variable(found[2])};\n"


def _variable(name: str) -> str:
    return f"module_{name.removesuffix('.js').replace('.', '_')}"
