"""For the tests of every package."""

import signal

from hypothesis import HealthCheck, settings

# How fast a busy machine is decides no test. A package's own profile, loaded after this one, says the same.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# A shell that starts pytest in the background has it ignore Ctrl-C, and every program that the tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
