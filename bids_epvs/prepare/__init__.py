"""From a scan to what a network needs: image in, new image out, nothing is written.

Read in this order: ``resample``, ``bias``, ``register``, ``places`` (atlas), ``structures`` (networks), ``tissues``,
``deep``, ``tidy``, ``brain``, ``regions``, ``session``, ``intensity``.
"""
