//! Where Redis is and how a connection to it is made: for the daemon and for the commands alike.
//!
//! The options come as raw arguments, are completed from the environment, and end as one
//! [`Target`], from which any thread can open a connection of its own. No I/O happens before
//! [`Target::connect`], except reading the files of a password or a certificate.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::io::ErrorKind::ConnectionReset;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value,
};

use crate::address::{self, CertFiles, with_tls, without_password};
use crate::cli::{Arg, Args, Usage, shell_word};
use crate::error::{Error, is_interrupted};
use crate::link::{Connection, ignore_server_error};

/// Where Redis is expected when nobody says otherwise.
pub const DEFAULT_ADDRESS: &str = "redis://localhost:6379";

/// The options about the connection, as every command takes them.
#[derive(Clone, Debug, Default)]
pub struct ConnectArgs {
    address: Option<String>,
    db: Option<i64>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    ssl: bool,
    branch: Option<String>,
}

impl ConnectArgs {
    /// The help text of these options.
    pub const HELP: &str =
        "  -a, --address ADDRESS   URL (redis://, rediss://, unix://) or path of a socket
                          [default: $LIBRARY_ADDRESS or redis://localhost:6379]
      --db N              number of the Redis database [default: 0]
      --username NAME     Redis user (ACL)
      --password TEXT     Redis password; $LIBRARY_PASSWORD keeps it out of ps
      --password-file F   read the password from the first line of file F
      --ssl               speak TLS, also where ADDRESS says redis://
      --branch NAME       work on the branch NAME: every key begins with {NAME}:
";

    /// The long names of these options, to name the nearest to one that is not known.
    pub const NAMES: [&str; 7] =
        ["address", "db", "username", "password", "password-file", "ssl", "branch"];

    /// Takes one argument if it is one of these options.
    ///
    /// # Errors
    /// The option's value is missing or wrong.
    pub fn take(&mut self, arg: &Arg, args: &mut Args) -> Result<bool, Usage> {
        let name = match arg {
            Arg::Short('a') => "address",
            Arg::Long(name) => name,
            _ => return Ok(false),
        };
        match name {
            "address" => self.address = Some(args.text()?),
            "db" => {
                let value = args.text()?;
                let db = value.parse().ok().filter(|db| *db >= 0);
                self.db = Some(db.ok_or_else(|| {
                    Usage(format!("--db wants the number of a database, not {value:?}"))
                })?);
            }
            "username" => self.username = Some(args.text()?),
            "password" => self.password = Some(args.text()?),
            "password-file" => self.password_file = Some(args.raw()?.into()),
            "ssl" => self.ssl = true,
            "branch" => {
                let name = args.text()?;
                if name.is_empty()
                    || name.contains(['{', '}'])
                    || name.chars().any(char::is_control)
                {
                    return Err(Usage(format!(
                        "--branch wants a name without braces and control characters, not {name:?}"
                    )));
                }
                self.branch = Some(name);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The branch that was named.
    pub fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// Database and branch, where they are not the usual ones, to be written behind the address.
    pub fn part(&self, target: &Target) -> String {
        let mut part = String::new();
        if target.db() != 0 {
            part += &format!(", database {}", target.db());
        }
        if let Some(branch) = self.branch() {
            part += &format!(", branch {branch}");
        }
        part
    }

    /// The options that were given, to be typed in another command for the same library: each with
    /// a blank before it. A password is for nobody's screen: it has to be given again.
    pub fn typed(&self) -> String {
        let file = self.password_file.as_ref().map(|file| file.display().to_string());
        let valued = [
            ("-a", self.address.as_deref().and_then(without_password)),
            ("--db", self.db.map(|db| db.to_string())),
            ("--username", self.username.clone()),
            ("--password-file", file),
            ("--branch", self.branch.clone()),
        ];
        let mut typed = String::new();
        for (name, value) in valued {
            if let Some(value) = value {
                typed += &format!(" {name} {}", shell_word(&value));
            }
        }
        typed + if self.ssl { " --ssl" } else { "" }
    }

    /// Completes the options from the environment: arguments come before it, it comes before
    /// defaults.
    ///
    /// # Errors
    /// The address is none, or a file that was named cannot be read.
    pub fn resolve(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Target, Usage> {
        let (address, whose) = match &self.address {
            Some(address) => (address.clone(), "the address"),
            None => (
                variable(env, "LIBRARY_ADDRESS")?.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned()),
                "the address in $LIBRARY_ADDRESS",
            ),
        };
        let (mut info, mut files) = address::parse(&address)
            .map_err(|Usage(fault)| Usage(fault.replacen("the address", whose, 1)))?;
        // The library's name is shown in CLIENT LIST only, and telling it costs a round trip. An address
        // may ask for RESP3, in which Redis puts some replies into other types; nothing here needs those.
        let mut settings = info
            .redis_settings()
            .clone()
            .set_skip_set_lib_name()
            .set_protocol(ProtocolVersion::RESP2);
        if let Some(db) = self.db {
            settings = settings.set_db(db);
        }
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        // An address that was typed comes before the environment, with all that is in it.
        let is_typed = self.address.is_some() && settings.password().is_some();
        let password = match self.typed_password()? {
            None if !is_typed => password_from_env(env)?,
            typed => typed,
        };
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        if settings.username().is_some() && settings.password().is_none() {
            // Without one, redis-rs does not name the user either, and works as the default one. A user
            // that needs none takes any.
            settings = settings.set_password("");
        }
        if self.ssl {
            info = with_tls(info)?;
        }
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            // A peer that vanished without a word is noticed, and unacknowledged data does not
            // wait longer than a reply may take.
            .set_user_timeout(REPLY_TIMEOUT);
        info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            if files.is_none() {
                files = credential_files(env)?;
            }
            if let Some(files) = &files {
                // For its faults, told before anything else: it is read anew for each connection.
                files.add_to(info.clone())?;
            }
        } else if files.is_some() {
            return Err(Usage(format!(
                "{whose} names a certificate, and that goes with TLS: rediss:// or --ssl"
            )));
        }
        let shown = match info.addr() {
            ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
            ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port} (TLS)"),
            addr => addr.to_string(),
        };
        Ok(Target { info, files, shown, patience: REPLY_TIMEOUT })
    }

    /// The password that the options name.
    fn typed_password(&self) -> Result<Option<String>, Usage> {
        match (&self.password, &self.password_file) {
            (Some(_), Some(_)) => {
                Err(Usage("--password and --password-file exclude each other".into()))
            }
            (Some(password), None) => Ok(Some(password.clone())),
            (None, Some(file)) => read_password(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// A variable of the environment; an empty one is not there.
fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, Usage> {
    let Some(value) = env(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    value.into_string().map(Some).map_err(|_| Usage(format!("${name} is not UTF-8")))
}

/// The password of the environment, or else the one that systemd hands over.
fn password_from_env(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<String>, Usage> {
    if let Some(password) = variable(env, "LIBRARY_PASSWORD")? {
        return Ok(Some(password));
    }
    credential(env, PASSWORD_CREDENTIAL)?.map(|file| read_password(&file)).transpose()
}

fn read_password(file: &Path) -> Result<String, Usage> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Usage(format!("cannot read the password from {}: {e}", file.display())))?;
    // An editor leaves a line break at the end; whatever follows the first line is a mistake that
    // would otherwise show as a wrong password.
    match text.lines().next() {
        None | Some("") => {
            Err(Usage(format!("the first line of {} is empty: no password", file.display())))
        }
        Some(password) => Ok(password.to_owned()),
    }
}

/// The names of the credentials in which systemd hands the password over, and our certificate with its key.
const PASSWORD_CREDENTIAL: &str = "redis-password";
const CERT_CREDENTIAL: &str = "redis-cert";
const KEY_CREDENTIAL: &str = "redis-key";

/// The file of a credential that systemd hands over, with `LoadCredential=redis-password:FILE` for one.
fn credential(
    env: &dyn Fn(&str) -> Option<OsString>,
    name: &str,
) -> Result<Option<PathBuf>, Usage> {
    let Some(directory) = env("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    let file = Path::new(&directory).join(name);
    match file.try_exists() {
        Ok(is_there) => Ok(is_there.then_some(file)),
        Err(e) => Err(Usage(format!("cannot read {}: {e}", file.display()))),
    }
}

/// Our certificate and its key, if systemd hands them over.
fn credential_files(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<CertFiles>, Usage> {
    match (credential(env, CERT_CREDENTIAL)?, credential(env, KEY_CREDENTIAL)?) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(CertFiles { cert, key })),
        _ => Err(Usage("of the credentials redis-cert and redis-key one is missing".into())),
    }
}

/// How long Redis may take to answer a command that does not block, and a connection to be made. Scripts here
/// take milliseconds; a slow disk under `appendfsync always` takes longer. After that the connection
/// is given up.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for somebody in a hurry, at least: a Redis that works hard, or is far away, is not taken for one
/// that hangs.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a password was refused where there is none.
pub(crate) const HAS_NO_PASSWORD: &str = "this Redis has no password";

/// A Redis to connect to.
#[derive(Clone, Debug)]
pub struct Target {
    info: ConnectionInfo,
    /// Read for each connection: a certificate is replaced before it expires.
    files: Option<CertFiles>,
    shown: String,
    /// How long a connection, and a reply, is waited for.
    patience: Duration,
}

impl Target {
    /// The same Redis for somebody who has no more time than that: what does not answer is given up
    /// sooner than after [`REPLY_TIMEOUT`].
    #[must_use]
    pub fn within(&self, time: Duration) -> Self {
        let patience = time.clamp(SHORTEST_TIMEOUT, REPLY_TIMEOUT);
        Self { patience, ..self.clone() }
    }

    /// How long a reply is waited for.
    pub fn reply_timeout(&self) -> Duration {
        self.patience
    }

    /// Opens a connection. Commands on it that do not answer within [`REPLY_TIMEOUT`], or the time of
    /// [`Target::within`], plus `blocking` fail; `blocking` is how long the server itself may hold a reply back.
    ///
    /// # Errors
    /// Redis cannot be reached, refuses the password, or has no such database.
    pub fn connect(&self, blocking: Duration) -> Result<Connection, Error> {
        static CRYPTO: Once = Once::new();
        // It fails only where one is installed already, which is as good.
        CRYPTO.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let info = self.info_now()?;
        // A signal or a pause of this process interrupts it: there is nothing yet that could be lost.
        let opened = loop {
            match open(info.clone(), self.patience, blocking) {
                Err(error) if is_interrupted(&error) => {}
                opened => break opened,
            }
        };
        opened.map_err(|error| match self.missing_database(&error) {
            Some(fault) => Error::Unfit(fault),
            None if error.kind() == ErrorKind::AuthenticationFailed => {
                Error::redis("connect to Redis")(self.refusal(error, info))
            }
            None => Error::redis("connect to Redis")(error),
        })
    }

    /// With our certificate as it is now.
    fn info_now(&self) -> Result<ConnectionInfo, Error> {
        let Some(files) = &self.files else { return Ok(self.info.clone()) };
        files.add_to(self.info.clone()).map_err(|Usage(fault)| Error::System {
            doing: "use our certificate",
            source: io::Error::other(fault),
        })
    }

    /// Why user and password were refused: redis-rs takes every answer to them for a refusal, and keeps
    /// the server's words back. So they are sent once more. Only words that are known are told: a server
    /// may repeat what it was sent.
    fn refusal(&self, error: RedisError, info: ConnectionInfo) -> RedisError {
        let refused =
            |reason: &str| (ErrorKind::AuthenticationFailed, "refused", reason.to_owned()).into();
        match self.authenticate(info) {
            Err(said) if said.detail() == Some("max number of clients reached") => said,
            Err(said) if said.detail().is_some_and(|it| it.contains("without any password")) => {
                refused(HAS_NO_PASSWORD)
            }
            // One that has too many clients hangs up, perhaps before it was sent that. And whoever takes
            // them now has not refused them before.
            Err(said) if said.is_io_error() => said,
            Ok(()) => io::Error::from(ConnectionReset).into(),
            Err(_) if self.info.redis_settings().password() == Some("") => {
                refused("no password was given")
            }
            Err(_) => error,
        }
    }

    fn authenticate(&self, info: ConnectionInfo) -> Result<(), RedisError> {
        let settings = self.info.redis_settings();
        let nobody = RedisConnectionInfo::default().set_skip_set_lib_name();
        let mut connection = open(info.set_redis_settings(nobody), self.patience, Duration::ZERO)?;
        let mut auth = redis::cmd("AUTH");
        auth.arg(settings.username()).arg(settings.password());
        auth.query(&mut connection)
    }

    /// What is said where the server has no database of that number: it will not get one while we
    /// try again.
    fn missing_database(&self, error: &RedisError) -> Option<String> {
        let said = error.detail()?;
        let reasons = ["DB index", "value is out of range", "cluster mode"];
        let is_missing = error.to_string().contains("refused to switch database")
            && reasons.iter().any(|reason| said.contains(reason));
        is_missing.then(|| format!("this Redis has no database {}: {said}", self.db()))
    }

    /// Whether this address is spoken to by TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// Whether it is the path of a socket.
    pub fn is_socket(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::Unix(_))
    }

    /// The number of the database.
    pub fn db(&self) -> i64 {
        self.info.redis_settings().db()
    }
}

/// A connection that is waited for as long as `patience`, and so are replies on it, and `blocking` besides.
fn open(
    info: ConnectionInfo,
    patience: Duration,
    blocking: Duration,
) -> Result<Connection, RedisError> {
    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let mut connection = Client::open(info)?.get_connection_with_timeout(patience)?;
    // redis-rs takes the timeouts away once it is connected; a half-open link would then hang for ever.
    connection.set_read_timeout(Some(patience + blocking))?;
    connection.set_write_timeout(Some(patience))?;
    if is_tls {
        // TLS shakes hands with the first command. If that one added an event, a failed handshake would leave
        // open whether it was added: so a PING goes first.
        ignore_server_error(redis::cmd("PING").query::<Value>(&mut connection))?;
    }
    Ok(connection.into())
}

/// The address without user and password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(args: &[&str]) -> Result<ConnectArgs, Usage> {
        let mut args = Args::from_list(args.iter().copied());
        let mut connect = ConnectArgs::default();
        while let Some(arg) = args.next()? {
            assert!(connect.take(&arg, &mut args)?);
        }
        Ok(connect)
    }

    fn resolve(args: &[&str], env: &[(&str, &str)]) -> Result<Target, Usage> {
        taken(args)?.resolve(&|name| {
            env.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_options_are_typed_again_as_they_were_but_for_passwords() {
        for (args, typed) in [
            (&[][..], ""),
            (
                &["--ssl", "--branch=north wing", "--db", "2", "-a", "redis://h:7602"],
                " -a redis://h:7602 --db 2 --branch 'north wing' --ssl",
            ),
            (
                &["--username", "clerk", "--password", "secret", "--address", "/run/r s"],
                " -a '/run/r s' --username clerk",
            ),
            (&["--password-file", "/etc/pw"], " --password-file /etc/pw"),
            (&["-a", "redis://clerk:secret@h/2"], " -a redis://clerk@h/2"),
            (&["-a", "redis://:s%40cret@[::1]:7602"], " -a 'redis://[::1]:7602'"),
            (&["-a", "unix:///run/r?pass=secret&db=2"], " -a 'unix:///run/r?db=2'"),
            (&["-a", "unix:///run/r?p%61ss=secret"], " -a unix:///run/r"),
            (&["-a", "redis:secret@h/0"], ""),
            (
                &["-a", "rediss://:secret@h?cert=/etc/my%20own.pem&key=/etc/k.pem"],
                " -a 'rediss://h?cert=/etc/my%20own.pem&key=/etc/k.pem'",
            ),
        ] {
            assert_eq!(taken(args).unwrap().typed(), typed, "{args:?}");
        }
    }

    #[test]
    fn an_address_is_a_url_or_the_path_of_a_socket() {
        let shown = |address: &str| resolve(&["-a", address], &[]).map(|t| t.to_string());
        assert_eq!(shown("redis://10.0.0.1"), Ok("10.0.0.1:6379".into()));
        assert_eq!(shown("rediss://host:7000"), Ok("host:7000 (TLS)".into()));
        assert_eq!(shown("/run/redis.sock"), Ok("/run/redis.sock".into()));
        assert_eq!(shown("run/redis.sock"), Ok("run/redis.sock".into()));
        assert_eq!(shown("unix:///run/redis.sock"), Ok("/run/redis.sock".into()));
        for bad in ["", "localhost", "http://x", "redis://", "redis://h/x"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    /// A request went into database 0, whatever the URL of a host said behind its `?`.
    #[test]
    fn what_a_url_says_behind_its_question_mark_is_done_or_refused() {
        let db = |address: &str| resolve(&["-a", address], &[]).map(|target| target.db());
        assert_eq!(db("redis://h?db=3"), Ok(3));
        assert_eq!(db("rediss://h:7000/?db=4&protocol=resp3"), Ok(4));
        assert_eq!(db("unix:///run/redis.sock?db=5&user=u&pass=p"), Ok(5));
        assert_eq!(db("redis://h/3"), Ok(3));
        for (address, fault) in [
            ("redis://h/3?db=3", "twice"),
            ("redis://h?db=x", "no number"),
            ("redis://h?db=3&db=4", "the parameter db twice"),
            ("rediss://h?cert=/c.pem&key=", "the parameter key without a value"),
            ("redis://h?pass=secret", "\"pass\""),
            ("redis://u:1?secret@h", "%3F"),
            ("unix:///run/redis.sock?tls=yes", "\"tls\""),
            ("redis://h/3#secret", "%23"),
        ] {
            let Err(Usage(said)) = db(address) else { panic!("{address}") };
            assert!(said.contains(fault) && !said.contains("secret"), "{address}: {said}");
        }
    }

    #[test]
    fn who_gave_no_address_is_told_where_the_wrong_one_stands() {
        let Err(Usage(said)) = resolve(&[], &[("LIBRARY_ADDRESS", "nonsense:1")]) else { panic!() };
        assert!(said.starts_with("the address in $LIBRARY_ADDRESS is no Redis URL"), "{said}");
        let Err(Usage(said)) = resolve(&["-a", "redis://h:99999"], &[]) else { panic!() };
        assert!(said.contains("in the address is"), "{said}");
    }

    #[test]
    fn a_wrong_port_is_told_as_such_and_without_what_may_be_a_password() {
        for address in ["redis://h:99999", "rediss://u:secret@h:x/3", "redis://[::1]:65536"] {
            let Err(Usage(fault)) = resolve(&["-a", address], &[]) else { panic!("{address}") };
            assert_eq!(fault, "the port in the address is no number up to 65535", "{address}");
        }
        let Err(Usage(fault)) = resolve(&["-a", "redis://:pass/word@h"], &[]) else { panic!() };
        assert!(!fault.contains("the port"), "{fault}");
        for address in [
            "redis://h:65535",
            "redis://h:",
            "redis://[::1]",
            "redis://[::1]:7000",
            "redis://u:p@h",
        ] {
            assert!(resolve(&["-a", address], &[]).is_ok(), "{address}");
        }
    }

    #[test]
    fn a_user_without_a_password_is_named_to_the_server_too() {
        let password = |args: &[&str], env: &[(&str, &str)]| {
            let target = resolve(args, env).unwrap();
            target.info.redis_settings().password().map(str::to_owned)
        };
        assert_eq!(password(&["--username", "clerk"], &[]), Some(String::new()));
        assert_eq!(password(&["-a", "redis://clerk@h"], &[]), Some(String::new()));
        let env = [("LIBRARY_PASSWORD", "from-env")];
        assert_eq!(password(&["--username", "clerk"], &env), Some("from-env".into()));
        for nobody in ["redis://h", "redis://@h"] {
            assert_eq!(password(&["-a", nobody], &[]), None, "{nobody}");
        }
    }

    #[test]
    fn arguments_come_before_the_environment_and_no_message_tells_the_password() {
        let env = [("LIBRARY_ADDRESS", "redis://env:1"), ("LIBRARY_PASSWORD", "from-env")];
        let target = resolve(&[], &env).unwrap();
        assert_eq!(target.to_string(), "env:1");
        assert_eq!(target.info.redis_settings().password(), Some("from-env"));
        let target = resolve(&["-a", "redis://:secret@arg:2/3", "--db", "4"], &env).unwrap();
        assert_eq!(target.to_string(), "arg:2");
        assert_eq!(target.info.redis_settings().db(), 4);
        let Err(Usage(message)) = resolve(&["-a", "redis://:secret@h/x"], &[]) else {
            panic!("a database is a number")
        };
        assert!(!message.contains("secret"), "{message}");
    }

    /// The password of the environment was sent to whatever host the command line named with one of its
    /// own.
    #[test]
    fn the_password_of_an_address_that_was_typed_comes_before_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PASSWORD_CREDENTIAL), "from-systemd").unwrap();
        let dir = dir.path().to_str().unwrap();
        let env = [("LIBRARY_PASSWORD", "from-env"), ("CREDENTIALS_DIRECTORY", dir)];
        for (args, env, password) in [
            (&["-a", "redis://:typed@h"][..], &env[..], "typed"),
            (&["-a", "redis://:typed@h"], &env[1..], "typed"),
            (&["-a", "redis://:typed@h", "--password", "from-arg"], &env, "from-arg"),
            (&["-a", "redis://h"], &env, "from-env"),
            (&["-a", "redis://h"], &env[1..], "from-systemd"),
            (&[], &[("LIBRARY_ADDRESS", "redis://:old@h"), env[0]], "from-env"),
        ] {
            let target = resolve(args, env).unwrap();
            assert_eq!(target.info.redis_settings().password(), Some(password), "{args:?} {env:?}");
        }
    }

    #[test]
    fn a_certificate_of_ours_stands_in_the_address_and_needs_a_key_and_tls() {
        let at =
            |name: &str| format!("{}/tests/it/certificates/{name}", env!("CARGO_MANIFEST_DIR"));
        let (cert, key) = (at("server.crt"), at("server.key"));
        let dir = tempfile::tempdir().unwrap();
        let both = dir.path().join("both in one");
        let contents = [&key, &cert].map(|file| std::fs::read(file).unwrap()).concat();
        std::fs::write(&both, contents).unwrap();
        let both = both.display().to_string().replace(' ', "%20");
        let has_ours = |args: &[&str], env: &[(&str, &str)]| {
            let target = resolve(args, env)?;
            let info = target.info_now().unwrap();
            Ok(matches!(info.addr(), ConnectionAddr::TcpTls { tls_params: Some(_), .. }))
        };
        let ours = format!("cert={cert}&key={key}");
        for address in [format!("rediss://h?{ours}"), format!("rediss://h?db=3&cert={both}")] {
            assert_eq!(has_ours(&["-a", &address], &[]), Ok(true), "{address}");
            assert_eq!(has_ours(&[], &[("LIBRARY_ADDRESS", &address)]), Ok(true), "{address}");
        }
        assert_eq!(has_ours(&["--ssl", "-a", &format!("redis://h?{ours}")], &[]), Ok(true));
        for (address, fault) in [
            (
                format!("redis://h?{ours}"),
                "the address names a certificate, and that goes with TLS",
            ),
            (
                format!("unix:///s?{ours}"),
                "the address names a certificate, and that goes with TLS",
            ),
            (format!("rediss://h?key={key}"), "a key and no certificate"),
            (format!("rediss://h?cert=/no/where&key={key}"), "cannot read /no/where: No such"),
            (format!("rediss://h?cert={key}"), "server.key has no certificate in PEM"),
            (
                format!("rediss://h?cert={cert}"),
                "server.crt has no key in PEM that needs no passphrase, and the address names no key",
            ),
        ] {
            let Err(Usage(told)) = has_ours(&["-a", &address], &[]) else { panic!("{address}") };
            assert!(told.contains(fault), "{told}");
        }
        // As systemd hands them over.
        let env = [("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())];
        assert_eq!(has_ours(&["-a", "rediss://h"], &env), Ok(false));
        std::fs::copy(cert, dir.path().join(CERT_CREDENTIAL)).unwrap();
        let Err(Usage(told)) = has_ours(&["-a", "rediss://h"], &env) else { panic!("no key") };
        assert!(told.contains("one is missing"), "{told}");
        assert_eq!(
            has_ours(&["-a", "redis://h"], &env),
            Ok(false),
            "without TLS it is for nothing"
        );
        std::fs::copy(key, dir.path().join(KEY_CREDENTIAL)).unwrap();
        assert_eq!(has_ours(&["-a", "rediss://h"], &env), Ok(true));
    }

    #[test]
    fn tls_goes_with_hosts_whatever_their_url_says_and_with_no_socket() {
        let shown = |address| resolve(&["--ssl", "-a", address], &[]).map(|it| it.to_string());
        for address in ["redis://h", "rediss://h"] {
            assert_eq!(shown(address), Ok("h:6379 (TLS)".into()));
        }
        assert!(shown("/run/redis.sock").is_err());
    }

    #[test]
    fn what_is_empty_in_the_environment_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let env = [
            ("LIBRARY_ADDRESS", ""),
            ("LIBRARY_PASSWORD", ""),
            ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap()),
        ];
        let target = resolve(&[], &env).unwrap();
        assert_eq!(target.to_string(), "localhost:6379");
        assert_eq!(target.info.redis_settings().password(), None);
    }

    #[test]
    fn a_password_is_the_first_line_of_its_file_and_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let args = ["--password-file", file.to_str().unwrap()];
        for (text, password) in [("secret\nmore\n", Some("secret")), ("", None), ("\nsecret", None)]
        {
            std::fs::write(&file, text).unwrap();
            let target = resolve(&args, &[]);
            let read = target.as_ref().map(|target| target.info.redis_settings().password());
            assert_eq!(read.ok().flatten(), password, "{text:?}");
            assert_eq!(target.is_err(), password.is_none(), "{text:?}");
        }
        std::fs::write(&file, "secret").unwrap();
        let both = resolve(&[&args[..], &["--password", "secret"]].concat(), &[]);
        assert!(both.is_err_and(|Usage(fault)| fault.ends_with("exclude each other")));
    }

    #[test]
    fn the_name_of_a_branch_ends_where_its_braces_do_and_forges_no_line() {
        assert!(taken(&["--branch", "it's north"]).is_ok());
        for name in ["", "a{b", "a}b", "a\nb"] {
            assert!(taken(&["--branch", name]).is_err(), "{name:?}");
        }
    }
}
