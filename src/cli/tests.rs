//! Whole command lines against a service that answers from a script, and the golden files of every help text.
