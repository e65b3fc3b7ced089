"""``python -m cpmi``."""

from cpmi.cli import main

main()
