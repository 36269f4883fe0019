//! What to tell a person about an error of Redis or of the link, or where nothing is found: what may be wrong, and what
//! can be done about it.
//! It is for those who gave the address of a command, and at first for who started a daemon.

use std::io::ErrorKind::{
    BrokenPipe, ConnectionReset, Interrupted, InvalidData, PermissionDenied, UnexpectedEof,
    WouldBlock,
};

use crate::connect::{HAS_NO_PASSWORD, Target};
use crate::error::{Error, Remedy};

impl Target {
    /// That Redis failed there: what it said, and what a person who gave a command this address may do about it.
    pub fn failed(&self, error: &Error) -> String {
        format!("Redis at {self}: {error}{}", self.advice(error))
    }

    /// That there is nothing of a library in that part of it, of which a mistyped address, number or branch would
    /// else give a picture of peace.
    pub fn has_no_library(&self, part: &str) -> String {
        format!(
            "there is no library on Redis at {self}{part}: no libraryd has ever run there, or its data is gone"
        )
    }

    /// What a person who gave a command this address may do about an error, as an aside.
    pub fn advice(&self, error: &Error) -> &'static str {
        match error {
            _ if error.code() == Some("WRONGTYPE") => " (library-admin check says which key it is)",
            _ if error.code() == Some("CROSSSLOT") => " (a Redis Cluster needs --branch NAME)",
            _ if error.lacks_permission() => {
                " (this Redis user needs more permissions, see Redis users in library-lending(7))"
            }
            _ if error.to_string().ends_with(HAS_NO_PASSWORD) => {
                " (leave it out of the options, the address, $LIBRARY_PASSWORD and systemd's credentials)"
            }
            _ if error.remedy() == Remedy::Credentials => {
                " (give user and password by --username and --password-file or $LIBRARY_PASSWORD)"
            }
            _ => self.question(error),
        }
    }

    /// What to ask who gave this address, as an aside, when the link fails; nothing where it does
    /// not, or stands.
    pub fn question(&self, error: &Error) -> &'static str {
        if let Some(question) = self.question_at_any_time(error) {
            return question;
        }
        match error {
            Error::Redis { source, .. } if source.is_io_error() => match error.io_kind() {
                Some(PermissionDenied) => " (may this user use that socket?)",
                Some(ConnectionReset | BrokenPipe | UnexpectedEof) if self.is_socket() => {
                    " (it closed the connection: has it too many clients, or been stopped?)"
                }
                Some(ConnectionReset | BrokenPipe | UnexpectedEof) => {
                    " (it closed the connection: has it too many clients, or does it want --ssl?)"
                }
                // Nothing came for as long as an answer is waited for, or a pause ended the wait: the
                // link stands.
                Some(WouldBlock | Interrupted) => "",
                // On this side.
                _ if error.to_string().contains("Too many open files") => "",
                _ => " (is Redis running there? -a ADDRESS or $LIBRARY_ADDRESS says where it is)",
            },
            _ => "",
        }
    }

    /// The same about what can go wrong where all was well: a primary becomes a replica, a certificate expires.
    pub fn question_at_any_time(&self, error: &Error) -> Option<&'static str> {
        match error.code() {
            Some("READONLY") => Some(" (it is a replica: where is its primary?)"),
            Some("NOREPLICAS") => {
                Some(" (fewer replicas are there than its min-replicas-to-write wants)")
            }
            Some("MISCONF") => Some(" (it cannot write to its disk: its log says why)"),
            Some("OOM") => Some(" (its memory is full, see its maxmemory)"),
            _ if self.is_tls() => question_of_tls(error),
            _ => None,
        }
    }
}

/// The words are those of rustls.
fn question_of_tls(error: &Error) -> Option<&'static str> {
    let said = error.to_string();
    let says = |words: &str| said.contains(words);
    // What came is nothing of what TLS begins with.
    let is_no_tls = error.io_kind() == Some(InvalidData) && says("corrupt message");
    let questions = [
        // A server that waits for a line of text says nothing to what TLS begins with.
        (error.is_unanswered() || is_no_tls, " (does that port speak TLS?)"),
        // Nobody that is trusted has signed the server's, or those to trust cannot be read.
        (
            says("UnknownIssuer") || says("read PEM"),
            " ($SSL_CERT_FILE says which certificates to trust)",
        ),
        // Its name, or its time.
        (says("invalid peer certificate"), " (that Redis needs another certificate)"),
        // A Redis wants one of its clients unless it is told otherwise.
        (
            says("CertificateRequired"),
            " (the address names ours: rediss://HOST?cert=FILE&key=FILE)",
        ),
        (
            says("received fatal alert: ") && (says("UnknownCA") || says("Certificate")),
            " (it does not take our certificate)",
        ),
        (says("KeyMismatch"), " (our key is not the one of our certificate)"),
    ];
    questions.into_iter().find_map(|(is_so, question)| is_so.then_some(question))
}
