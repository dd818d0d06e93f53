"""The command line: parse, call one function. Nothing here imports torch before a verb runs."""
