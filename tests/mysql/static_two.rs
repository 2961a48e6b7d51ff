//! `static` with two servers: sessions go to the second one when an administrator had it take over, and only when it is proven
//! that it has everything.

use crate::support::EVENT;
use crate::support::client::Client;
use crate::support::proxy::{Options, Proxy};
use crate::support::server::{Kind, Server};
use crate::support::{SOON, wait_until};
use serde_json::json;

/// Two servers that write logs by GTID, and have no history yet.
fn servers() -> [Server; 2] {
    [1, 2].map(|number| {
        let id = format!("--server-id={number}");
        let (own, reset): (&[&str], _) = if Kind::wanted().is_mysql() {
            (
                &["--gtid-mode=ON", "--enforce-gtid-consistency=ON"],
                "RESET BINARY LOGS AND GTIDS",
            )
        } else {
            (
                &["--gtid-strict-mode=ON", "--log-slave-updates"],
                "RESET MASTER",
            )
        };
        let server = Server::start(&[&["--log-bin=binlog", &id][..], own].concat());
        server.run(&[reset]);
        server
    })
}

fn follow(replica: &Server, source: &Server) {
    let port = source.address().rsplit(':').next().unwrap().to_owned();
    if Kind::wanted().is_mysql() {
        replica.run(&[
            &format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, \
                 SOURCE_USER = 'slackwater', SOURCE_PASSWORD = 'service-secret', SOURCE_AUTO_POSITION = 1, \
                 GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1"
            ),
            "START REPLICA",
            "SET GLOBAL super_read_only = ON",
        ]);
    } else {
        replica.run(&[
            "SET GLOBAL gtid_slave_pos = @@GLOBAL.gtid_current_pos",
            &format!(
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = 'slackwater', \
                 MASTER_PASSWORD = 'service-secret', MASTER_SSL = 0, MASTER_SSL_VERIFY_SERVER_CERT = 0, \
                 MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1"
            ),
            "START SLAVE",
            "SET GLOBAL read_only = ON",
        ]);
    }
}

/// What an administrator does to have the replica take over.
fn switch_over(old: &Server, new: &Server) {
    let mysql = Kind::wanted().is_mysql();
    old.run(&[if mysql {
        "SET GLOBAL super_read_only = ON"
    } else {
        "SET GLOBAL read_only = ON"
    }]);
    let rows = "SELECT COUNT(*) FROM app.t";
    let wanted = Client::to(&old.admin()).value(rows);
    let mut client = Client::to(&new.admin());
    wait_until("the replica has all", SOON, || client.value(rows) == wanted);
    let word = if mysql { "REPLICA" } else { "SLAVE" };
    new.run(&[&format!("STOP {word}"), &format!("RESET {word} ALL")]);
    if mysql {
        new.run(&["SET GLOBAL super_read_only = OFF"]);
    }
    new.run(&["SET GLOBAL read_only = OFF"]);
}

#[test]
fn safety_18_mysql_sessions_go_to_the_server_that_provably_took_over() {
    let [first, second] = servers();
    follow(&second, &first);
    first.run(&["CREATE TABLE app.t (n INT PRIMARY KEY)"]);
    let proxy = Proxy::on_two(&first, &second, &Options::default());
    let admin = proxy.admin();
    let mut client = proxy.client("stays");
    client.run("SET @mine = 5");
    client.run("INSERT INTO t VALUES (1)");
    let refused = |why: &str| {
        let id = admin.start_event(&json!({ "timeout_seconds": 10 }));
        let event = admin.finished(id, EVENT);
        assert_eq!(event["outcome"], "failed", "{event}");
        let reason = event["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(why), "{reason}");
    };
    // A replica takes no writes.
    refused("standby");
    switch_over(&first, &second);
    // It took over, and the first one does not follow it yet.
    refused(if Kind::wanted().is_mysql() {
        "not the replica"
    } else {
        "follows no server"
    });
    follow(&first, &second);
    wait_until("the first one follows", SOON, || {
        let sql = if Kind::wanted().is_mysql() {
            "SELECT COUNT(*) FROM performance_schema.replication_connection_status WHERE SERVICE_STATE = 'ON'"
        } else {
            "SELECT COUNT(*) FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'SLAVE_RUNNING' AND VARIABLE_VALUE = 'ON'"
        };
        Client::to(&first.admin()).value(sql) == "1"
    });
    admin.swap();
    assert_eq!(client.value("SELECT @mine"), "5");
    let port = client.value("SELECT @@port");
    assert!(second.address().ends_with(&port), "{port}");
    client.run("INSERT INTO t VALUES (2)");
    assert_eq!(client.value("SELECT COUNT(*) FROM t"), "2");
}

/// A transaction that only the old server has is not left behind.
#[test]
fn safety_18_mysql_a_server_that_lacks_a_write_is_refused() {
    let [first, second] = servers();
    follow(&second, &first);
    first.run(&["CREATE TABLE app.t (n INT PRIMARY KEY)"]);
    let proxy = Proxy::on_two(&first, &second, &Options::default());
    switch_over(&first, &second);
    // An administrator's write, past everything.
    let read_only = |on: &str| {
        let name = if Kind::wanted().is_mysql() {
            "super_read_only"
        } else {
            "read_only"
        };
        format!("SET GLOBAL {name} = {on}")
    };
    first.run(&[
        &read_only("OFF"),
        "INSERT INTO app.t VALUES (7)",
        &read_only("ON"),
    ]);
    if Kind::wanted().is_mysql() {
        // It can follow by GTID all the same: only the comparison shows it.
        follow(&first, &second);
    }
    let admin = proxy.admin();
    let id = admin.start_event(&json!({ "timeout_seconds": 10 }));
    let event = admin.finished(id, EVENT);
    assert_eq!(event["outcome"], "failed", "{event}");
    assert_eq!(
        Client::to(&first.admin()).value("SELECT COUNT(*) FROM app.t"),
        "1"
    );
}
