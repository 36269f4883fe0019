//! Addresses of a Redis, as people write them: a URL or the path of a Unix socket.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::cli::Usage;
use crate::text::push_escaped;

/// Where our certificate and its key are, for a Redis that wants one of its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFiles {
    /// The certificate, or the chain of them, in PEM.
    pub cert: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl CertFiles {
    /// A connection by TLS with that certificate.
    ///
    /// # Errors
    /// The files cannot be read, or hold something else.
    pub fn add_to(&self, info: ConnectionInfo) -> Result<ConnectionInfo, Usage> {
        let Self { cert, key } = self;
        let read = |file: &Path| {
            std::fs::read(file).map_err(|e| Usage(format!("cannot read {}: {e}", file.display())))
        };
        let (client_cert, client_key) = (read(cert)?, read(key)?);
        // redis-rs takes a file without a certificate for an empty chain, and nothing would be noticed before
        // the handshake.
        CertificateDer::from_pem_slice(&client_cert)
            .map_err(|_| Usage(format!("{} has no certificate in PEM", cert.display())))?;
        let ours = Some(ClientTlsConfig { client_cert, client_key });
        let client =
            Client::build_with_tls(info, TlsCertificates { client_tls: ours, root_cert: None })
                .map_err(|_| {
                    let key_named =
                        if key == cert { ", and the address names no key=FILE" } else { "" };
                    let key = key.display();
                    Usage(format!("{key} has no key in PEM that needs no passphrase{key_named}"))
                })?;
        Ok(client.get_connection_info().clone())
    }
}

/// The address without the password in it; none where it cannot be told whether there is one.
pub fn without_password(address: &str) -> Option<String> {
    if !address.contains("://") {
        // A path; or a URL that was mistyped, and taken for one.
        return (!address.contains('@')).then(|| address.to_owned());
    }
    let mut url = redis::parse_redis_url(address)?;
    let query = url.query().unwrap_or_default().to_owned();
    let is_password = |pair: &&str| decoded(pair.split('=').next().unwrap_or(pair)) == b"pass";
    let (asked, kept): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_password);
    if url.password().is_none() && asked.is_empty() {
        return Some(address.to_owned());
    }
    // It fails only for a URL that cannot have one.
    let _ = url.set_password(None);
    let kept = kept.join("&");
    url.set_query(Some(&*kept).filter(|kept| !kept.is_empty()));
    Some(url.to_string())
}

/// A URL, or else the path of a Unix socket; and the files that the URL names.
///
/// # Errors
/// What is wrong with it. It may carry a password: it is not repeated.
pub fn parse(address: &str) -> Result<(ConnectionInfo, Option<CertFiles>), Usage> {
    let fault = |why: &dyn fmt::Display| {
        Usage(format!("the address is no Redis URL and no path of a Unix socket: {why}"))
    };
    if address.is_empty() {
        return Err(fault(&"it is empty"));
    }
    if has_wrong_port(address) {
        return Err(Usage("the port in the address is no number up to 65535".into()));
    }
    if address.contains("://") {
        let info = address.into_connection_info().map_err(|e| {
            fault(&e.detail().unwrap_or("write redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]"))
        })?;
        return with_query(info, address);
    }
    if !address.contains('/') {
        // What is in front of an @ may be a password.
        return Err(if address.contains('@') {
            fault(&"write redis:// in front of a host")
        } else {
            fault(&format!("write redis://{address} or ./{address}"))
        });
    }
    let info = ConnectionAddr::Unix(address.into()).into_connection_info();
    Ok((info.map_err(|e| fault(&e))?, None))
}

/// What stands behind the `?` of a URL. redis-rs passes over what it does not know there, and knows a
/// database only in the URL of a socket: whoever named one for a host worked on another. Nor does it know
/// of certificates. These stand in the address, and not among the options, since each setting of an address
/// has a place for them then, the environment too.
fn with_query(
    info: ConnectionInfo,
    address: &str,
) -> Result<(ConnectionInfo, Option<CertFiles>), Usage> {
    if address.contains('#') {
        return Err(Usage("the address has a # in it, which has to be written as %23".into()));
    }
    let (place, query) = address.split_once('?').unwrap_or((address, ""));
    let is_socket = matches!(info.addr(), ConnectionAddr::Unix(_));
    let (mut db, mut cert, mut key) = (None, None, None);
    let mut named = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "protocol" => {}
            "user" | "pass" if is_socket => {}
            "cert" => cert = Some(path_of(value)),
            "key" => key = Some(path_of(value)),
            "db" => db = Some(value),
            _ if pair.contains('@') => {
                let fault = "the address has a ? in its password, which has to be written as %3F";
                return Err(Usage(fault.into()));
            }
            // What stands behind it may be a password.
            _ => {
                let mut fault = "the address has a parameter that is not known: \"".to_owned();
                push_escaped(&mut fault, name);
                return Err(Usage(fault + "\""));
            }
        }
        if named.contains(&name) {
            return Err(Usage(format!("the address has the parameter {name} twice")));
        }
        if value.is_empty() {
            return Err(Usage(format!("the address has the parameter {name} without a value")));
        }
        named.push(name);
    }
    let files = match (cert, key) {
        (None, None) => None,
        (Some(cert), key) => Some(CertFiles { key: key.unwrap_or_else(|| cert.clone()), cert }),
        (None, Some(_)) => return Err(Usage("the address names a key and no certificate".into())),
    };
    let Some(db) = db else { return Ok((info, files)) };
    let db = db.parse().map_err(|_| Usage("the database in the address is no number".into()))?;
    let path = place.splitn(4, '/').nth(3).unwrap_or_default();
    if !is_socket && !path.is_empty() {
        return Err(Usage("the address names a database twice, by /DB and by ?db=DB".into()));
    }
    let settings = info.redis_settings().clone().set_db(db);
    Ok((info.set_redis_settings(settings), files))
}

fn path_of(value: &str) -> PathBuf {
    OsString::from_vec(decoded(value)).into()
}

/// A part of a URL without its escapes.
fn decoded(value: &str) -> Vec<u8> {
    // from_str_radix takes a sign.
    let digits = |two: &&[u8]| two.iter().all(u8::is_ascii_hexdigit);
    let hex = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    let mut plain = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, behind @ ..] = rest {
        let escaped = behind.get(..2).filter(digits).filter(|_| *first == b'%').and_then(hex);
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &behind[2..] } else { behind };
    }
    plain
}

/// Whether this is a URL of a server whose port is none.
fn has_wrong_port(address: &str) -> bool {
    let Some((scheme, rest)) = address.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if rest.contains('@') && !authority.contains('@') {
        // A password with a slash in it, which has to be written as %2F.
        return false;
    }
    let host = authority.rsplit('@').next().unwrap_or_default();
    // An address of IPv6 stands in brackets.
    let port = host.rsplit(']').next().and_then(|host| host.rsplit_once(':'));
    ["redis", "rediss"].contains(&scheme)
        && port.is_some_and(|(_, port)| !port.is_empty() && port.parse::<u16>().is_err())
}

/// The same place by TLS.
///
/// # Errors
/// It is a Unix socket.
pub fn with_tls(info: ConnectionInfo) -> Result<ConnectionInfo, Usage> {
    match info.addr().clone() {
        ConnectionAddr::Tcp(host, port) => Ok(info.set_addr(ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        })),
        ConnectionAddr::TcpTls { .. } => Ok(info),
        _ => Err(Usage("--ssl does not go with a Unix socket".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_has_two_hexadecimal_digits() {
        for (value, plain) in
            [("a%2Fb", "a/b"), ("100%", "100%"), ("%2", "%2"), ("%zz", "%zz"), ("%+1", "%+1")]
        {
            assert_eq!(decoded(value), plain.as_bytes(), "{value}");
        }
    }
}
