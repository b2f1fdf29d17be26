"""What holds for all tests."""

import signal

# Many send a Ctrl-C to a command that they have started. A shell that starts tests in the background has it ignored,
# and the commands would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
