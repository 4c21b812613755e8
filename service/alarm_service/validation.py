"""Validators for objects and lists of any size, which note few faults and let others run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic import model_validator as _model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = [
    "MAX_FAULTS",
    "FailFastInPieces",
    "FewUnknown",
    "InPieces",
    "ListOf",
    "OmittedFaults",
    "num_faults",
]

#: As many faults as one sentence names; of the others it tells the number.
MAX_FAULTS = 5

#: Members that pydantic, which holds the interpreter, is given at once.
_PIECE = 256


class OmittedFaults:
    """Stands as a fault's input for so many faults of one kind, of which none is named."""

    def __init__(self, count: int) -> None:
        self.count = count


def num_faults(faults: Sequence[Mapping[str, Any]]) -> int:
    """Count faults, omitted ones included."""
    inputs = (fault.get("input") for fault in faults)
    return sum(one.count if isinstance(one, OmittedFaults) else 1 for one in inputs)


class FewUnknown(BaseModel):
    """A model that forbids unknown keys, and notes the first of them alone.

    pydantic makes an error of each, some 10 kB: a body may have millions.
    """

    @_model_validator(mode="before")
    @classmethod
    def _omit_unknown(cls, value: Any) -> Any:
        known = cls.model_fields
        if type(value) is not dict or len(value) <= len(known) + MAX_FAULTS:
            return value
        unknown = [name for name in value if name not in known]
        kept = {name: value[name] for name in known if name in value}
        kept |= {name: value[name] for name in unknown[:MAX_FAULTS]}
        if len(unknown) > MAX_FAULTS:
            kept[unknown[MAX_FAULTS]] = OmittedFaults(len(unknown) - MAX_FAULTS)
        return kept


def _in_pieces(value: Any, validate: ValidatorFunctionWrapHandler, *, fails_fast: bool) -> Any:
    """Validate a long list, or a large object of names, some members at a time."""
    if type(value) is list and len(value) > _PIECE:
        pieces = (value[at : at + _PIECE] for at in range(0, len(value), _PIECE))
        valid = _valid(pieces, validate, shifts=True, fails_fast=fails_fast)
        return list(chain.from_iterable(valid))
    if type(value) is dict and len(value) > _PIECE:
        members = _valid(_parts(value), validate, shifts=False, fails_fast=fails_fast)
        return dict(chain.from_iterable(part.items() for part in members))
    return validate(value)


# Functions rather than partial objects: pydantic asks for their signatures and their names.


def _with_all(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return _in_pieces(value, validate, fails_fast=False)


def _with_first(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return _in_pieces(value, validate, fails_fast=True)


#: Annotates a list or an object of names that may have any number of members.
InPieces = WrapValidator(_with_all)
#: Annotates a list of which the first fault is told and no other.
FailFastInPieces = WrapValidator(_with_first)

_T = TypeVar("_T")
ListOf = Annotated[list[_T], InPieces]


def _parts(members: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
    items = iter(members.items())
    while part := dict(islice(items, _PIECE)):
        yield part


def _valid(
    pieces: Iterator[Any], validate: ValidatorFunctionWrapHandler, *, shifts: bool, fails_fast: bool
) -> list[Any]:
    """Validate each piece; raise the first faults of all, with the number of the others.

    ``shifts`` says that members are named by their index, ``fails_fast`` that the first fault is
    told and no other.
    """
    found: list[Any] = []
    named: list[InitErrorDetails] = []
    num_found = 0
    title = ""
    for index, piece in enumerate(pieces):
        try:
            valid = validate(piece)
        except ValidationError as error:
            title = error.title
            if len(named) == MAX_FAULTS:
                num_found += error.error_count()
                continue
            faults = error.errors(include_url=False, include_context=False)
            num_found += num_faults(faults)
            shift = index * _PIECE if shifts else 0
            named += (_details(fault, shift) for fault in faults[: MAX_FAULTS - len(named)])
            if fails_fast:
                break
        else:
            if not named:
                found.append(valid)
    if not named:
        return found
    if num_found > len(named):
        more = PydanticCustomError("omitted", "more of this kind")
        omitted = OmittedFaults(num_found - len(named))
        named.append(InitErrorDetails(type=more, loc=(), input=omitted))
    raise ValidationError.from_exception_data(title, named)


def _details(fault: Mapping[str, Any], shift: int) -> InitErrorDetails:
    loc = fault["loc"]
    if shift and loc and isinstance(loc[0], int):
        loc = (loc[0] + shift, *loc[1:])
    kind = PydanticCustomError(fault["type"], fault["msg"])
    return InitErrorDetails(type=kind, loc=loc, input=fault["input"])
