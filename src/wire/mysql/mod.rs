//! Packets of the MySQL protocol, as MySQL and MariaDB speak it.
