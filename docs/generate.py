"""Write the tables of docs/ that come from the code: recipes, kinds, rules, routes, options, ...

`make docs` runs it. tests/test_contributing.py fails while a table is out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from fastapi.openapi.utils import get_openapi
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alarm_models.combination.all_rules import Rule
from alarm_models.combination.overlong import OverlongSpec
from alarm_models.combination.rule_registry import CONSTANTS, RULES, RuleDefinition
from alarm_models.modeling.families import Family, families, recipe_lines
from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.schema import (
    AspectSpec,
    HierarchySpec,
    HolisticSpec,
    Overrides,
    Recipe,
)
from alarm_models.recipe.specs import KINDS
from alarm_service.api.app import create_app
from alarm_service.errors import ServiceError
from alarm_service.observability.metrics import Metrics
from alarm_service.settings import Settings, flag_of

DOCS = Path(__file__).parent


def kinds() -> str:
    """Return the table of kinds, from the first lines of their specs' docstrings."""
    rows = [(f"`{kind}`", (spec.__doc__ or "").splitlines()[0]) for kind, spec in KINDS.items()]
    return _table(("kind", "what it gives"), rows)


def rules() -> str:
    """Return the table of rules."""
    rows = [
        (f"`{rule.name}`", rule.summary, rule.reward, _constants_of(rule), rule.source)
        for rule in (RULES[name] for name in Rule)
    ]
    return _table(("rule", "what it does", "reward", "constants", "source"), rows)


def _constants_of(rule: RuleDefinition) -> str:
    optional = (name if name == "threshold" else f"{name}` (optional)" for name in rule.accepts)
    names = [*rule.requires, *optional]
    return ", ".join(f"`{name}" if name.endswith(")") else f"`{name}`" for name in names)


def constants() -> str:
    """Return the table of constants that only some rules use."""
    rows = [
        (
            f"`{name}`",
            constant.description,
            ", ".join(f"`{rule}`" for rule in Rule if name in RULES[rule].constants),
        )
        for name, constant in CONSTANTS.items()
    ]
    return _table(("constant", "what it is", "rules"), rows)


#: Defaults that the loader fills in.
_NAMED: Mapping[tuple[type[BaseModel], str], str] = {(Recipe, "name"): "the file's name"}


def keys_of(table: type[BaseModel], *left_out: str) -> Callable[[], str]:
    """Return what makes the table of the keys of a recipe's table, or of a request's."""

    def keys() -> str:
        rows = [
            (f"`{name}`", _NAMED.get((table, name)) or _default(field), _described(field))
            for name, field in table.model_fields.items()
            if name not in left_out
        ]
        return _table(("key", "default", "what it is"), rows)

    return keys


def model_keys() -> str:
    """Return the tables of the keys of models: one for each set of kinds with the same keys."""
    kinds_of: dict[tuple[str, str, str], list[str]] = {}
    for kind, spec in KINDS.items():
        for name, field in spec.model_fields.items():
            if name != "kind":
                key = (f"`{name}`", _default(field), _described(field))
                kinds_of.setdefault(key, []).append(kind)
    keys: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for key, having in kinds_of.items():
        keys.setdefault(tuple(having), []).append(key)
    tables = []
    for having, rows in keys.items():
        others = [f"`{kind}`" for kind in KINDS if kind not in having]
        kinds = ", ".join(f"`{kind}`" for kind in having)
        if len(others) <= 2:
            kinds = "All kinds" + (f" but {' and '.join(others)}" if others else "")
        tables.append(f"{kinds}:\n\n{_table(('key', 'default', 'what it is'), rows)}")
    return "\n".join(tables)


def options() -> str:
    """Return the table of the options of `alarm serve`."""
    rows = [
        (f"`{flag_of(name)}`", _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return _table(("option", "default", "what it is"), rows)


def _described(field: FieldInfo) -> str:
    """Return a field's description, with the values that it may have where it names only some."""
    text = field.description or ""
    values = [f"`{one}`" for one in _literals(field.annotation)]
    if len(values) > 1 and not all(one in text for one in values):
        text += f" ({', '.join(values)})"
    return text


def _literals(annotation: object) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    return [value for one in get_args(annotation) for value in _literals(one)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) or default is None or default in ("", (), {}):
        return ""
    if isinstance(default, tuple):
        return ", ".join(f"`{' '.join(one) if isinstance(one, tuple) else one}`" for one in default)
    shown = str(default).lower() if isinstance(default, bool) else f"{default}"
    return f"`{shown}`"


def routes() -> str:
    """Return the table of routes, by path."""
    app = create_app([load_recipe("mini")], Settings(device="cpu"))
    paths = get_openapi(title="", version="", routes=app.routes)["paths"]
    rows = [
        (f"`{method.upper()} {path}`", operation.get("description", "").partition("\n")[0])
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]
    return _table(("route", "what it does"), rows)


def errors() -> str:
    """Return the table of the errors of requests, by status."""
    found = {one.code: one for one in _subclasses(ServiceError) if "code" in vars(one)}
    rows = [
        (
            str(one.status),
            f"`{code}`",
            "yes" if one.retryable else "no",
            (one.__doc__ or "").partition("\n")[0],
        )
        for code, one in sorted(found.items(), key=lambda item: (item[1].status, item[0]))
    ]
    return _table(("status", "code", "retryable", "what happened"), rows)


def _subclasses(kind: type[ServiceError]) -> Iterable[type[ServiceError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


def metrics() -> str:
    """Return the table of metrics, by name."""
    found = Metrics()
    found.changes.bind_recipes(lambda: {"mini": ""})
    families = {
        family.name: (family, collector)
        for collector in list(found.registry._collector_to_names)
        for family in collector.collect()
        if family.name.startswith("alarm_")
    }
    rows = [
        (
            f"`{name}_total`" if family.type == "counter" else f"`{name}`",
            family.type,
            ", ".join(f"`{label}`" for label in _labels(family, collector)),
            family.documentation,
        )
        for name, (family, collector) in sorted(families.items())
    ]
    return _table(("metric", "type", "labels", "what it says"), rows)


def models() -> str:
    """Return the table of families that a recipe is created for, in the order of matching."""
    rows = [
        (
            family.name,
            _recognized_by(family),
            f"`{recipe_lines(family.recipe)}`",
            _test(family) if family.test else "no",
            _remarks(family),
        )
        for family in families()
        if family.recipe
    ]
    return _table(("family", "recognized by", "recipe", "compared with its card", "remarks"), rows)


def unread_models() -> str:
    """Return the table of families without a recipe, with what to use instead."""
    rows = [
        (
            family.name,
            _recognized_by(family),
            (family.refusal or family.advice or "").replace("\n", " "),
        )
        for family in families()
        if not family.recipe
    ]
    return _table(("family", "recognized by", "what to use"), rows)


def _recognized_by(family: Family) -> str:
    conditions = [
        *family.architectures,
        *family.names,
        *family.tensors,
        *(f"added token {json.dumps(token, ensure_ascii=False)}" for token in family.added_tokens),
        *(f"id2label {label}" for label in family.labels),
        *([] if family.prefix is None else [f"{family.prefix}*"]),
        *([] if family.num_labels is None else [f"num_labels {family.num_labels}"]),
    ]
    return ", ".join(f"`{one}`" for one in conditions) or "its files"


def _remarks(family: Family) -> str:
    examples = ", ".join(family.examples)
    remarks = (
        examples and f"such as {examples}",
        family.note,
        family.unverified and "**not verified**",
        family.license and f"license: {family.license}",
    )
    return "; ".join(filter(None, remarks))


def _labels(family: Metric, collector: object) -> Iterable[str]:
    return getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())


#: A table's name in its markers -> the page it is in, and what makes it.
TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "recipe-keys": ("recipes.md", keys_of(Recipe)),
    "holistic-keys": ("recipes.md", keys_of(HolisticSpec)),
    "hierarchy-keys": ("recipes.md", keys_of(HierarchySpec, *CONSTANTS)),
    "aspect-keys": ("recipes.md", keys_of(AspectSpec)),
    "overlong-keys": ("recipes.md", keys_of(OverlongSpec)),
    "override-keys": ("recipes.md", keys_of(Overrides)),
    "model-keys": ("recipes.md", model_keys),
    "options": ("options.md", options),
    "errors": ("errors.md", errors),
    "kinds": ("kinds.md", kinds),
    "rules": ("rules.md", rules),
    "constants": ("rules.md", constants),
    "routes": ("routes.md", routes),
    "metrics": ("metrics.md", metrics),
    "models": ("models.md", models),
    "unread-models": ("models.md", unread_models),
}


def _test(family: Family) -> str:
    folder = "zoo" if (DOCS.parent / "tests" / "zoo" / str(family.test)).is_file() else "models"
    return f"`tests/{folder}/{family.test}`"


def with_table(name: str, page: str) -> str:
    """Return a page with its table as the code has it now."""
    markers = rf"(<!-- begin {name}:[^\n]*-->\n).*?(<!-- end {name} -->)"
    _, make = TABLES[name]
    written, count = re.subn(
        markers, lambda found: f"{found[1]}{make()}{found[2]}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the page needs one pair of markers of {name!r}, and has {count}")
    return written


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [_row(head), _row("---" for _ in head).replace(" ", ""), *(_row(row) for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main() -> None:
    """Write every table into its page."""
    for name, (file, _) in TABLES.items():
        path = DOCS / file
        path.write_text(with_table(name, path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
