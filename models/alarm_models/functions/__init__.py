"""A user's functions, in processes of their own: what hangs there can be killed."""

from alarm_models.functions.pool import Function, FunctionPool

__all__ = ["Function", "FunctionPool"]
