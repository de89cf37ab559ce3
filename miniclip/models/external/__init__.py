"""Models of other code bases, in the form that evaluation takes."""
