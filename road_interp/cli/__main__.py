"""`python -m road_interp.cli`, as torchrun starts it."""

from road_interp.cli.app import main

main()
