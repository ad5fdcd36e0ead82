"""From a mask to numbers: ``lesions`` (instances, shape), ``ratings`` (visual scales)."""
