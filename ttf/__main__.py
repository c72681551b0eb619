"""``python -m ttf``: the command line."""

from ttf.commands import main

main()
