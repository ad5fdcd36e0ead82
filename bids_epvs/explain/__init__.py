"""Why a method says what it says: maps in the space of the scan."""
