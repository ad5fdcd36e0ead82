"""How good a method is: images with truth in, tables and a page of figures out."""
