"""Whole jobs as plain functions: train, evaluate, build MEPIs, report, reproduce, benchmark."""
