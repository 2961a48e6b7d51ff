//! Metrics, logs, and the kinds of errors.
