"""Exit codes of the command line."""

FAILURE = 1  # an error that the input did not cause
BAD_INPUT = 2
PARTIAL = 3  # some items of a batch failed
INTERRUPTED = 130  # Ctrl+C
