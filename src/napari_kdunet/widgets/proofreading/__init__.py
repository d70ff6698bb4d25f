"""What the panel *Objects* is made of: corrections of objects, their table, a preview on the slice."""
