"""What is optimised, behind one small protocol."""
