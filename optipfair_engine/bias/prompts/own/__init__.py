"""The suite of our own: templates and attributes, English and Spanish."""
