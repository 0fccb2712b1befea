"""The search operations, described."""

from http_shim.contract.operations import Operation

SEARCH_OPERATIONS: tuple[Operation, ...] = ()
