"""Simulated heads with known EPVS: ``anatomy``, ``tubes``, ``contrast``, and ``dataset`` (files and command line)."""
