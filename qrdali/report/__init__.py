"""Makes the report: tables, figures and one page of what runs and MEPI sets left on disk."""
