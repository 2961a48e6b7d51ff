//! A session that could not be restored is found before anything is changed: it is the blocker
//! `not_restorable` with its reason, nobody is disturbed, and once the cause is gone the event completes.

use crate::support::postgres::{ADMIN, Postgres};
use crate::support::proxy::{Options, Proxy};
use crate::support::wire::{Client, Target};
use crate::support::{EVENT, SOON, wait_until};
use serde_json::json;

/// A static server and one of the proxy's own: the rolling switch and the barrier.
fn both(test: impl Fn(&Proxy, &mut Client)) {
    let server = Postgres::start(&[]);
    let proxy = Proxy::on(&server);
    let admin = Target::new(proxy.port(), ADMIN, "app").with("application_name", "admin");
    test(&proxy, &mut Client::connect(&admin).unwrap());
    let proxy = Proxy::local(&Options::default());
    let admin = Target::new(proxy.port(), ADMIN, "app").with("application_name", "admin");
    test(&proxy, &mut Client::connect(&admin).unwrap());
}

fn blocked(proxy: &Proxy, event: u64, reason: &str) {
    let admin = proxy.admin();
    wait_until("the session is named with the reason", SOON, || {
        let state = admin.event(event);
        assert!(admin.outcome(event).is_none(), "must wait: {state:#}");
        let blockers = admin.blockers("keeps");
        blockers.iter().any(|b| {
            let detail = b["detail"].as_str().unwrap_or_default();
            b["kind"] == "not_restorable" && detail.contains(reason)
        })
    });
}

#[test]
fn rehearsal_safety_09_finds_a_password_that_was_changed() {
    both(|proxy, superuser| {
        let admin = proxy.admin();
        let mut client = proxy.client("keeps");
        client.run("set work_mem = '5MB'");
        superuser.run("alter role app password 'another'");
        let (process, capacity) = (client.server_process(), admin.capacity());
        let event = admin.start_event(&json!({ "timeout_seconds": 4 }));
        blocked(proxy, event, "password authentication failed");
        assert_eq!(client.value("show work_mem"), "5MB", "it works on");
        let state = admin.finished(event, EVENT);
        assert_eq!(state["outcome"], "rolled_back", "{state:#}");
        assert_eq!(admin.capacity(), capacity);
        assert_eq!(client.server_process(), process, "it was left alone");
        assert_eq!(client.value("show work_mem"), "5MB");
        // Who logs in with the new password does not stand in the way.
        client.close();
        wait_until("it is gone", SOON, || admin.session("keeps").is_none());
        let target = Target::new(proxy.port(), ("app", "another"), "app");
        let mut client = Client::connect(&target).unwrap();
        admin.swap();
        client.run("select 1");
        superuser.run("select 1");
    });
}

#[test]
fn rehearsal_safety_09_finds_valid_until_and_sees_when_it_is_put_right() {
    both(|proxy, superuser| {
        let admin = proxy.admin();
        let mut client = proxy.client("keeps");
        client.run("prepare kept as select 7");
        superuser.run("alter role app valid until '2001-01-01'");
        let process = client.server_process();
        let event = admin.start_event(&json!({}));
        blocked(proxy, event, "app");
        assert_eq!(client.value("execute kept"), "7", "it works on");
        superuser.run("alter role app valid until 'infinity'");
        let state = admin.finished(event, EVENT);
        assert_eq!(state["outcome"], "completed", "{state:#}");
        assert_ne!(client.server_process(), process, "moved");
        assert_eq!(client.value("execute kept"), "7");
    });
}

#[test]
fn rehearsal_safety_09_finds_a_role_that_may_not_be_taken_any_more() {
    both(|proxy, superuser| {
        let admin = proxy.admin();
        let mut client = proxy.client("keeps");
        client.run("set role helper");
        superuser.run("revoke helper from app");
        let event = admin.start_event(&json!({ "timeout_seconds": 4 }));
        blocked(proxy, event, "helper");
        assert_eq!(client.value("select current_user"), "helper");
        let state = admin.finished(event, EVENT);
        assert_eq!(state["outcome"], "rolled_back", "{state:#}");
        client.run("reset role");
        admin.swap();
        assert_eq!(client.value("select current_user"), "app");
    });
}
