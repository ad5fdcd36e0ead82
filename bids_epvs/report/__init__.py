"""From records to HTML: ``figures`` (arrays to pictures), ``subject``, ``group``, ``boilerplate`` (methods text)."""
