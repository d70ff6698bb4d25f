"""The measurements of objects in the panel *Objects*: as a table, plotted, and filtered."""
