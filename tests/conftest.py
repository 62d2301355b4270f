"""For the tests of every package."""

import signal

# A shell that starts pytest in the background has it ignore Ctrl-C, and every program that the tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
