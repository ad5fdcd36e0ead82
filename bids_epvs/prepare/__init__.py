"""From a scan to what a network needs: image in, new image out, nothing is written.

Read in this order: ``resample``, ``bias``, ``register``, ``brain``, ``regions``, ``intensity``.
"""
