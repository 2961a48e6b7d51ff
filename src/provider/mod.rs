//! How servers come to be: providers create, resize and stop instances.
