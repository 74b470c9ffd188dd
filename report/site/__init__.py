"""The site: every report, explorer, answer, method and page of docs as HTML that loads nothing from a network."""
