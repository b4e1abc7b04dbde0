"""From a kernel or a program to a Plan, loaded, jumped to, and an Outcome."""
