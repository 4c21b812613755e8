"""The rules that make one reward of a sample's scores: pure arithmetic, one family a file."""

from alarm_models.rules.parts import Part, Parts
from alarm_models.rules.table import combine_all, faults

__all__ = ["Part", "Parts", "combine_all", "faults"]
