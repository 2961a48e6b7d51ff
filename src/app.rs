//! Wires the parts of a running proxy together; the only place that does.
