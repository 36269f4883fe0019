//! A Redis that speaks TLS.
//!
//! The certificates in `certificates/` are made for these tests, by an authority whose key was thrown
//! away, for a server that is called localhost; until the year 2120.

use crate::common::*;

fn file(name: &str) -> String {
    format!("{}/tests/it/certificates/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A server, and its URL.
fn server(options: &[&str]) -> (Redis, String) {
    let (certificate, key, authority) =
        (file("server.crt"), file("server.key"), file("authority.crt"));
    let files = [
        "--tls-cert-file",
        &*certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &authority,
    ];
    let redis = Redis::tls(&[&files[..], options].concat());
    let url = format!("rediss://localhost:{}", redis.port());
    (redis, url)
}

#[test]
fn a_library_on_a_redis_that_speaks_tls_is_served() {
    let (redis, url) = server(&["--tls-auth-clients", "no"]);
    let redis = redis.trusting(&file("authority.crt"));
    let mut daemon = Daemon::start(&redis, &["-a", &url, "worker1"]);
    let run = TestCommand::library_req(&redis, &["request", "user1", "geb", "-a", &url]).exits(0);
    assert_eq!(run.stdout, "lent to user1: geb (1 in hand)\n");
    let plain = url.replace("rediss:", "redis:");
    let lines: String = (0..2_000).map(|n| format!("request u{n} b{n}\n")).collect();
    let batch = redis.directory().join("batch");
    std::fs::write(&batch, lines).unwrap();
    let batch = batch.display().to_string();
    TestCommand::library_req(&redis, &["batch", &batch, "-q", "-a", &plain, "--ssl"]).exits(0);
    TestCommand::library_admin(&redis, &["check", "-a", &url]).exits(0);
    redis.assert_at_rest();
    assert_eq!(daemon.stop(), 0, "{}", daemon.log());
}

/// Which it does unless it is told otherwise: such a Redis could not be used at all.
#[test]
fn a_redis_that_wants_certificates_of_its_clients_is_served() {
    let (redis, url) = server(&[]);
    let redis = redis.trusting(&file("authority.crt"));
    let (cert, key) = (file("server.crt"), file("server.key"));
    let with_ours = format!("{url}?cert={cert}&key={key}");
    let ours = ["-a", &*with_ours];
    let mut daemon = Daemon::start(&redis, &[&ours[..], &["worker1"]].concat());
    let args = [&["request", "user1", "geb"], &ours[..]].concat();
    let run = TestCommand::library_req(&redis, &args).exits(0);
    assert_eq!(run.stdout, "lent to user1: geb (1 in hand)\n");
    // As systemd hands them over.
    let credentials = redis.directory().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::copy(&cert, credentials.join("redis-cert")).unwrap();
    std::fs::copy(&key, credentials.join("redis-key")).unwrap();
    let admin = env!("CARGO_BIN_EXE_library-admin");
    let run = Running::start(&redis, admin, &["check", "-a", &url], |command| {
        command.env("CREDENTIALS_DIRECTORY", &credentials);
    });
    run.ends().exits(0);
    assert_eq!(daemon.stop(), 0, "{}", daemon.log());
}

/// It was read once, when libraryd began: whoever had replaced it before it expired had to know that.
#[test]
fn a_certificate_of_ours_that_is_replaced_is_used_from_the_next_connection_on() {
    let (redis, url) = server(&[]);
    let redis = redis.trusting(&file("authority.crt"));
    let cert = redis.directory().join("ours.crt");
    std::fs::copy(file("server.crt"), &cert).unwrap();
    let address = format!("{url}?cert={}&key={}", cert.display(), file("server.key"));
    let daemon = Daemon::start(&redis, &["-a", &address, "worker1"]);
    std::fs::write(&cert, "about to be renewed").unwrap();
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let told = |text: &str| eventually(DEADLINE, || daemon.log().contains(text));
    assert!(told("could not use our certificate: "), "{}", daemon.log());
    std::fs::copy(file("server.crt"), &cert).unwrap();
    assert!(told("working again after"), "{}", daemon.log());
}

/// Who mistrusts a certificate was asked whether Redis is running there.
#[test]
fn what_certificates_are_missing_is_said() {
    let (open, url) = server(&["--tls-auth-clients", "no"]);
    // As it is unless it is told otherwise.
    let (strict, strict_url) = server(&[]);
    let (cert, key) = (file("server.crt"), file("server.key"));
    // It has never heard of who signed ours.
    let (other, other_url) = server(&["--tls-ca-cert-file", &cert]);
    let other_url = format!("{other_url}?cert={cert}&key={key}");
    let authority = file("authority.crt");
    let trust = " ($SSL_CERT_FILE says which certificates to trust)\n";
    for (redis, url, trusted, said, hint) in [
        (&open, &*url, "/etc/hostname", "invalid peer certificate: UnknownIssuer", trust),
        (&open, &*url, "/nowhere", "No such file or directory (os error 2) at '/nowhere'", trust),
        (
            &open,
            &url.replace("localhost", "127.0.0.1"),
            &*authority,
            "not valid for name",
            " (that Redis needs another certificate)\n",
        ),
        (
            &strict,
            &*strict_url,
            &*authority,
            "CertificateRequired",
            " (the address names ours: rediss://HOST?cert=FILE&key=FILE)\n",
        ),
        (&other, &*other_url, &*authority, "UnknownCA", " (it does not take our certificate)\n"),
    ] {
        let redis = redis.trusting(trusted);
        let run = TestCommand::library_admin(&redis, &["status", "-a", url]).exits(4);
        assert!(run.stderr.contains(said) && run.stderr.ends_with(hint), "{run}");
        // It was not known whether this was queued, though no hands had been shaken.
        let run = TestCommand::library_req(&redis, &["request", "u", "b", "-a", url]).exits(4);
        assert!(run.stderr.contains("could not connect to Redis"), "{run}");
        assert!(run.stderr.ends_with("; nothing was sent\n"), "{run}");
    }
}
