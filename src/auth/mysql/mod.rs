//! Authentication plugins of MySQL and MariaDB, as pure computations.
