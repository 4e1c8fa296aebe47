"""The library's faces: estimator, command line, demonstrations. Empty, so that `--help` is quick."""
