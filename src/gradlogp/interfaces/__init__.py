"""The interfaces of the library: estimators, the command line, demonstrations."""

# nothing is imported here, so that `gradlogp --help` is quick
