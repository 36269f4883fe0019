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

/// Who mistrusts a certificate was asked whether Redis is running there.
#[test]
fn what_certificates_are_missing_is_said() {
    let (open, url) = server(&["--tls-auth-clients", "no"]);
    // As it is unless it is told otherwise.
    let (strict, strict_url) = server(&[]);
    let authority = file("authority.crt");
    let trust = " ($SSL_CERT_FILE says which certificates to trust)\n";
    for (redis, url, trusted, said, hint) in [
        (&open, &*url, "/etc/hostname", "invalid peer certificate: UnknownIssuer", trust),
        (&open, &*url, "/nowhere", "No such file or directory (os error 2) at '/nowhere'", trust),
        (&open, &url.replace("localhost", "127.0.0.1"), &*authority, "not valid for name", trust),
        (
            &strict,
            &*strict_url,
            &*authority,
            "CertificateRequired",
            " (we have none: set tls-auth-clients no, or optional, in that Redis)\n",
        ),
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
