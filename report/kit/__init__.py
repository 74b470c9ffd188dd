"""What every report is made with: document, renderers, style of figures, wording, statistics."""
