"""Files that may be cut, huge or hostile: atomic writes, locks, JSON, text, and rows larger than memory."""
