//! Values that are refused: line, key and words of what people are told.

use super::{ClientCertificate, parse, refused, small, with};

#[test]
fn later_features_are_refused_by_name() {
    for (text, line, key, words) in [
        (
            with("[clusters.shop.sessions]\npooling = \"transaction\""),
            17,
            "clusters.shop.sessions.pooling",
            "not in this release; use \"session\"",
        ),
        (
            with("[clusters.shop.sessions]\non_blocker = { listen = \"move\" }"),
            17,
            "clusters.shop.sessions.on_blocker.listen",
            "moving listen is not in this release",
        ),
        (
            with("[clusters.shop.sessions]\non_blocker = { replication = \"move\" }"),
            17,
            "clusters.shop.sessions.on_blocker.replication",
            "\"move\" is not possible; \"block\", \"terminate\" are",
        ),
        (
            with("[clusters.shop.capacity]\nmin = 0"),
            17,
            "clusters.shop.capacity.min",
            "capacity 0 (pause) is not in this release",
        ),
        (
            with("[clusters.shop.capacity]\nauto_pause_after = \"300s\""),
            17,
            "clusters.shop.capacity.auto_pause_after",
            "pausing is not in this release",
        ),
        (
            with("[clusters.shop.scaling]\nauto = true"),
            17,
            "clusters.shop.scaling.auto",
            "not in this release",
        ),
        (
            small("kind = \"static\"", "kind = \"exec\""),
            13,
            "clusters.shop.provider.kind",
            "provider \"exec\" is not in this release",
        ),
        (
            small("kind = \"static\"", "kind = \"kubernetes\""),
            13,
            "clusters.shop.provider.kind",
            "not in this release",
        ),
    ] {
        refused(&text, line, key, words);
    }
    let off = with(
        "[clusters.shop.sessions]\npooling = \"session\"\npark_after = \"0\"\n\
         on_blocker = { advisory_lock = \"block\", listen = \"block\", temp_table = \"block\", hold_cursor = \"block\", replication = \"block\" }\n\
         [clusters.shop.capacity]\nauto_pause_after = \"0\"\n\
         [clusters.shop.scaling]\nauto = false\nscale_up = { cpu_above = 0.7, connections_above = 0.9 }\n\
         scale_down = { cpu_below = 0.3, connections_below = 0.4, cooldown_after_up = \"900s\", cooldown_after_down = \"310s\" }\n\
         [listen.mysql]\naddress = [\"0.0.0.0:3306\"]\ntls = \"prefer\"",
    );
    let config = parse(&off).unwrap();
    assert_eq!(
        config.warnings,
        ["listen.mysql: is not bound, since no cluster has its engine"]
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn one_mistake_is_told_with_line_and_key() {
    for (text, line, key, words) in [
        (
            small("default = true", "default = true\ncolour = 1"),
            8,
            "clusters.shop.colour",
            "unknown key; known here: engine, default",
        ),
        (
            with("[limits]\nmax_client = 5"),
            17,
            "limits.max_client",
            "known here: max_clients",
        ),
        (with("[limit]\nmax_clients = 5"), 16, "limit", "unknown key"),
        (
            with("[limits]\nmax_clients = 0"),
            17,
            "limits.max_clients",
            "1 to 1000000",
        ),
        (
            with("[limits]\nmax_clients = \"5\""),
            17,
            "limits.max_clients",
            "expected a whole number, found a string",
        ),
        (
            with("[limits]\nlogin_timeout = 30"),
            17,
            "limits.login_timeout",
            "expected a duration in quotes",
        ),
        (
            with("[limits]\nlogin_timeout = \"30\""),
            17,
            "limits.login_timeout",
            "ms, s, m, h or d",
        ),
        (
            with("[limits]\nlogin_timeout = \"0\""),
            17,
            "limits.login_timeout",
            "\"1s\" to \"1h\" are possible",
        ),
        (
            with("[limits]\nmax_connection_age = \"100ms\""),
            17,
            "limits.max_connection_age",
            "or \"0\" (never)",
        ),
        (
            with("[clusters.shop.scaling]\nmax_hold = \"5m\""),
            17,
            "clusters.shop.scaling.max_hold",
            "\"10ms\" to \"60s\"",
        ),
        (
            with("[clusters.shop.scaling]\non_timeout = \"fail\""),
            17,
            "clusters.shop.scaling.on_timeout",
            "\"rollback\", \"force\" are",
        ),
        (
            with("[clusters.shop.scaling]\nscale_up = { cpu_above = 1.5 }"),
            17,
            "clusters.shop.scaling.scale_up.cpu_above",
            "0 to 1",
        ),
        (
            with("[clusters.shop.scaling]\nscale_up = { cpu_below = 0.5 }"),
            17,
            "clusters.shop.scaling.scale_up.cpu_below",
            "unknown key",
        ),
        (
            with("[clusters.shop.capacity]\nladder = [4, 2]"),
            17,
            "clusters.shop.capacity.ladder[1]",
            "ascends",
        ),
        (
            with("[clusters.shop.capacity]\nladder = []"),
            17,
            "clusters.shop.capacity.ladder",
            "empty",
        ),
        (
            with("[clusters.shop.capacity]\nladder = [1, 2, 4]\nmin = 3"),
            18,
            "clusters.shop.capacity.min",
            "3 is not on the ladder [1, 2, 4]",
        ),
        (
            with("[clusters.shop.capacity]\nmin = 4\nmax = 2"),
            17,
            "clusters.shop.capacity.min",
            "min must not be above max",
        ),
        (
            with("[clusters.shop.capacity]\nmin = 8\nmax = 16"),
            16,
            "clusters.shop.capacity",
            "no endpoint has a capacity from 8 to 16",
        ),
        (
            with("[clusters.shop.sessions]\ncustom_settings = [\"tenant\"]"),
            17,
            "clusters.shop.sessions.custom_settings[0]",
            "app.tenant",
        ),
        (
            with("[clusters.shop.sessions]\npooling = \"statement\""),
            17,
            "clusters.shop.sessions.pooling",
            "no kind of pooling",
        ),
        (
            with("[tls]\ncertificate = \"/proc/version\""),
            17,
            "tls.certificate",
            "needs private_key",
        ),
        (
            with("[tls]\ncertificate = \"nowhere.crt\"\nprivate_key = \"/proc/version\""),
            17,
            "tls.certificate",
            "nowhere.crt can't be read",
        ),
        (
            with("[admin]\naddress = \"0.0.0.0:7432\""),
            17,
            "admin.address",
            "token_file is demanded",
        ),
        (
            with("[admin]\naddress = \"unix:/tmp/admin\""),
            17,
            "admin.address",
            "TCP",
        ),
        (
            with("[admin]\naddress = \"127.0.0.1:5433\""),
            3,
            "listen.postgres.address[0]",
            "already taken by admin.address",
        ),
        (
            small("[\"127.0.0.1:5433\"]", "[]"),
            3,
            "listen.postgres.address",
            "empty",
        ),
        (
            small(
                "[\"127.0.0.1:5433\"]",
                "[\"127.0.0.1:5433\"]\nproxy_protocol = [\"10.0.0.0/8\", \"10.0.0.0/40\"]",
            ),
            4,
            "listen.postgres.proxy_protocol[1]",
            "\"10.0.0.0/40\" is not a network",
        ),
        (
            small("[\"127.0.0.1:5433\"]", "[\"localhost\"]"),
            3,
            "listen.postgres.address[0]",
            "host:port",
        ),
        (
            small(
                "[\"127.0.0.1:5433\"]",
                "[\"0.0.0.0:5433\", \"0.0.0.0:5433\"]",
            ),
            3,
            "listen.postgres.address[1]",
            "already taken by listen.postgres.address[0]",
        ),
        (
            small("default = true", ""),
            5,
            "clusters.shop",
            "set default = true, or hostnames",
        ),
        (
            small(
                "default = true",
                "default = true\nhostnames = [\"*.example.com\"]",
            ),
            8,
            "clusters.shop.hostnames[0]",
            "not a host name",
        ),
        (
            small("service_user = \"slackwater\"", ""),
            9,
            "clusters.shop.auth",
            "nobody may log in",
        ),
        (
            small(
                "service_user = \"slackwater\"",
                "service_user = \"s\"\nservice_password = \"a\"\nservice_password_file = \"/proc/version\"",
            ),
            11,
            "clusters.shop.auth.service_password",
            "keep one",
        ),
        (
            small(
                "service_user = \"slackwater\"",
                "service_user = \"s\"\nauth_query = \"SELECT 1\"",
            ),
            11,
            "clusters.shop.auth.auth_query",
            "$1",
        ),
        (
            small(
                "service_user = \"slackwater\"",
                "service_user = \"s\"\nmethod = \"trust\"",
            ),
            11,
            "clusters.shop.auth.method",
            "\"scram-sha-256\", \"md5\", \"password\", \"cert\" are",
        ),
        (
            small("capacity = 4", "capacity = 2"),
            14,
            "clusters.shop.provider.endpoints[1].capacity",
            "already",
        ),
        (
            small("capacity = 4, ", ""),
            14,
            "clusters.shop.provider.endpoints[1].capacity",
            "is missing",
        ),
        (
            small("10.0.0.6:5432", "10.0.0.6"),
            14,
            "clusters.shop.provider.endpoints[1].address",
            "host:port",
        ),
        (
            small("10.0.0.6:5432", "127.0.0.1:5433"),
            5,
            "clusters.shop.provider.endpoints",
            "connect to itself",
        ),
        (
            small(
                "kind = \"static\"",
                "kind = \"static\"\nserver_tls = \"on\"",
            ),
            14,
            "clusters.shop.provider.server_tls",
            "\"verify-full\"",
        ),
        (
            small(
                "kind = \"static\"",
                "kind = \"static\"\nserver_proxy_protocol = \"v3\"",
            ),
            14,
            "clusters.shop.provider.server_proxy_protocol",
            "\"off\", \"v1\", \"v2\" are",
        ),
        (
            small(
                "kind = \"static\"",
                "kind = \"static\"\nserver_ca = \"/proc/version\"",
            ),
            14,
            "clusters.shop.provider.server_ca",
            "verify-ca",
        ),
        (
            small("kind = \"static\"", "kind = \"static\"\ndata_dir = \"d\""),
            14,
            "clusters.shop.provider.data_dir",
            "unknown key; known here: kind, endpoints",
        ),
    ] {
        refused(&text, line, key, words);
    }
}

#[test]
fn client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", "x");
    let (plain, stored) = (
        file("plain.toml", "app = \"correct horse\"\n"),
        file(
            "stored.toml",
            "app = \"md5d41d8cd98f00b204e9800998ecf8427e\"\n",
        ),
    );
    let text = |auth: &str, tls: &str| {
        small(
            "service_user = \"slackwater\"",
            &format!("service_user = \"slackwater\"\n{auth}"),
        ) + tls
    };
    let with_ca = format!("[tls]\nclient_ca = \"{ca}\"\n");
    let cert = |users: &str| format!("method = \"cert\"\nusers_file = \"{users}\"");
    for (auth, demand) in [
        (String::new(), ClientCertificate::Off),
        (
            "client_certificate = \"verify-ca\"".to_owned(),
            ClientCertificate::VerifyCa,
        ),
        (
            "client_certificate = \"verify-full\"".to_owned(),
            ClientCertificate::VerifyFull,
        ),
        (cert(&plain), ClientCertificate::VerifyFull),
    ] {
        let config = parse(&text(&auth, &with_ca)).unwrap();
        assert_eq!(config.clusters[0].auth.client_certificate, demand, "{auth}");
    }
    let key = "clusters.shop.auth.client_certificate";
    let demand = "client_certificate = \"verify-ca\"";
    refused(&text(demand, ""), 5, key, "needs [tls] client_ca");
    let off = text(demand, &with_ca).replace("5433\"]", "5433\"]\ntls = \"off\"");
    refused(&off, 6, key, "needs TLS");
    refused(
        &text("client_certificate = \"on\"", &with_ca),
        11,
        key,
        "\"verify-full\"",
    );
    let method = "clusters.shop.auth.method";
    refused(
        &text("method = \"cert\"", &with_ca),
        11,
        method,
        "needs users_file",
    );
    refused(
        &text(&cert(&stored), &with_ca),
        11,
        method,
        "that of \"app\" is a verifier",
    );
    refused(
        &text(&format!("{}\n{demand}", cert(&plain)), &with_ca),
        13,
        key,
        "is verify-full",
    );
}

#[test]
fn certificates() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.crt", "a.key", "b.crt", "b.key"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let pair = |name: &str| {
        let path = dir.path().join(name).display().to_string();
        format!("certificate = \"{path}.crt\"\nprivate_key = \"{path}.key\"\n")
    };
    let (a, b) = (pair("a"), pair("b"));
    for text in [
        format!("[tls]\n{a}[[tls.certificates]]\n{b}"),
        format!("[[tls.certificates]]\n{a}[[tls.certificates]]\n{b}"),
    ] {
        let config = parse(&with(&text)).unwrap();
        let names: Vec<_> = config
            .tls
            .certificates
            .iter()
            .map(|c| c.certificate.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a.crt", "b.crt"], "{text}");
    }
    for (text, line, key, words) in [
        (
            "[[tls.certificates]]\n",
            16,
            "tls.certificates[0]",
            "needs certificate and private_key",
        ),
        (
            "[tls]\ncertificates = []",
            17,
            "tls.certificates",
            "the list is empty",
        ),
        (
            "[[tls.certificates]]\ncertificate = \"/dev/none\"",
            17,
            "tls.certificates[0].certificate",
            "needs private_key",
        ),
    ] {
        let error = parse(&with(text)).unwrap_err();
        let told = error
            .problems
            .iter()
            .find(|p| p.key == key && p.message.contains(words));
        assert_eq!(told.map(|p| p.line), Some(line), "{text}: {error}");
    }
}
