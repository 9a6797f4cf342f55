"""Bounds for hypothesis: the whole folder stays under a minute on one slow core; in CI the same examples are drawn each time.

`SP_TEST_EXAMPLES=5000 pytest tests/properties` looks longer.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "bounded",
    max_examples=int(os.environ.get("SP_TEST_EXAMPLES", "100")),
    deadline=None,  # no timed assertion: a slow machine is no bug
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("bounded")
