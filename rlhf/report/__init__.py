"""Writes what evaluation measured: report.json, report.md, report.html."""
