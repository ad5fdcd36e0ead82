"""``python -m bids_epvs``."""

from bids_epvs.cli import program

if __name__ == "__main__":
    program()
