"""All subjects together: ``table`` (tables of the sessions -> one row a session)."""
