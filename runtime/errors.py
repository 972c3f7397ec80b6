"""The user's mistakes, as the trace layer defines them."""

from traces.errors import UserError, nearest

__all__ = ["UserError", "nearest"]
