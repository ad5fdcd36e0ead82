"""Simulated heads with known EPVS.

``anatomy`` (heads as labels), ``mimics`` (lesions and vessels), ``tubes`` (EPVS), ``contrast`` (physics of an image),
``scene`` (a head to be imaged, whole or in crops: what training uses), ``dataset`` (files and command line),
``implant`` (EPVS in real scans).
"""
