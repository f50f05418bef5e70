"""`python -m road_interp.cli`, the form that torchrun needs."""

from road_interp.cli.app import main

main()
