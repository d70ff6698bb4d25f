"""The parts of the panel *Objects*: corrections of objects, their table, a preview on the slice."""
