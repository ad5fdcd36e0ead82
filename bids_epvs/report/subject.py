"""The report of one subject."""
from bids_epvs.report.boilerplate import bibliography
def make(scans, errors, settings): return None
