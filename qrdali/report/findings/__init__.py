"""What a report's runs show, in sentences: each computed from rows, with its figures and its test."""
