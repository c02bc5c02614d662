-- The one place that says which version this is: the Makefile and the rockspec's name follow it.
return "0.1.0"
