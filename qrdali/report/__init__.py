"""The report: tables, figures and one page, made from what runs and MEPI sets left on disk."""
