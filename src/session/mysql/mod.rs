//! What a MySQL or MariaDB session owes, holds and can be restored from.
