//! The servers that tests of MySQL and MariaDB stand on start, stop, crash and come back, each version.

use crate::support::mysql::{APP, Mysql, SERVICE, Version};

#[test]
fn each_version_starts_keeps_its_data_and_lets_its_accounts_in() {
    for version in Version::ALL {
        let Some(mut server) = Mysql::start(version, &["max-connections=77"]) else {
            continue;
        };
        assert_eq!(server.version().engine() == "mysql", version.is_mysql());
        let told = server.value("SELECT VERSION()");
        assert_eq!(told.contains("MariaDB"), !version.is_mysql(), "{told}");
        assert_eq!(server.value("SELECT @@max_connections"), "77");
        server.run(&[
            "CREATE TABLE t (n INT) ENGINE=InnoDB",
            "INSERT INTO t VALUES (7)",
        ]);
        for account in [APP, SERVICE] {
            let rows = server.query(account, "app", "SELECT n FROM t");
            assert_eq!(rows, Ok(vec!["7".to_owned()]), "{account:?}");
        }
        let denied = server.query((APP.0, "wrong"), "app", "SELECT 1");
        assert!(denied.unwrap_err().contains("1045"));
        let connected = std::net::TcpStream::connect(server.address());
        assert!(connected.is_ok(), "{connected:?}");
        server.freeze(true);
        server.freeze(false);
        server.stop();
        server.set("max-connections=78");
        server.boot();
        server.kill();
        server.boot();
        assert_eq!(server.value("SELECT n + @@max_connections FROM t"), "85");
    }
}
