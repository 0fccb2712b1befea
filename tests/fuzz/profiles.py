"""How long the fuzzers look: INFERD_TEST_FUZZ=10000 cases, or a few that are always the same.

A long run prints what repeats a failure (`@reproduce_failure`); `make fuzz` is one.
"""

import os

from hypothesis import HealthCheck, settings

VARIABLE = "INFERD_TEST_FUZZ"


def cases(quick: int, *, share: float = 1.0) -> int:
    """Return how many cases to try: `quick` in the suite, a share of what a long run asks for."""
    asked = int(os.environ.get(VARIABLE) or 0)
    return max(1, round(asked * share)) if asked else quick


def effort(quick: int, *, share: float = 1.0) -> settings:
    """Return hypothesis' settings for so many cases."""
    is_long = bool(os.environ.get(VARIABLE))
    return settings(
        max_examples=cases(quick, share=share),
        derandomize=not is_long,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
