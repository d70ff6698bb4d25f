"""From a mask to objects: instances, their measurements, contacts and scores."""
