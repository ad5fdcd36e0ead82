"""bids_epvs: enlarged perivascular spaces on brain MRI, as a BIDS-App.

Read in this order: ``cli`` (arguments to Settings), ``pipeline`` (the numbered stages), ``inputs``, ``prepare``,
``models``, ``measure``, ``derivatives``, ``report``, ``group``. ``synth`` simulates, ``train`` makes what is shipped.
Importing this package loads nothing heavy.
"""

__version__ = "0.1.0"
