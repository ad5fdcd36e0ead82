"""``python -m bids_epvs``."""

from bids_epvs.cli import main

if __name__ == "__main__":
    main()
