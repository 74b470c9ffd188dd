"""Records to statistics, tables, figures, report.md and report.pdf; never imports torch."""
