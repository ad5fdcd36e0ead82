"""BIDS derivatives: ``paths`` names files, ``write`` is the only writer of results."""
