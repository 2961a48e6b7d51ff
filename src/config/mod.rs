//! proxy.toml: its keys, their checks, and the validated configuration.
