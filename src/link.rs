//! A connection to Redis, and how it is asked: redis-rs', but for what happens when replies do not come.

use std::time::Duration;

use redis::{
    Cmd, ConnectionLike, ErrorKind, FromRedisValue, PubSub, RedisError, RedisResult, Value,
};

use crate::error::{self, Error};

/// Names and values: a hash, or the fields of an entry. Others can write there too: they need be no text.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A connection.
///
/// redis-rs reads the reply to each command of a pipeline even if one did not come in time, and waits as
/// long for each of the others: with a hundred commands in it, a link that had fallen silent took ten
/// minutes to be given up. Here the first that does not come is the last that is waited for.
pub struct Connection(redis::Connection);

impl From<redis::Connection> for Connection {
    fn from(connection: redis::Connection) -> Self {
        Self(connection)
    }
}

impl Connection {
    /// Sends commands, whose replies are received one by one.
    ///
    /// # Errors
    /// What the link said.
    pub fn send_packed_command(&mut self, cmd: &[u8]) -> RedisResult<()> {
        self.0.send_packed_command(cmd)
    }

    /// The next reply.
    ///
    /// # Errors
    /// What the link said.
    pub fn recv_response(&mut self) -> RedisResult<Value> {
        self.0.recv_response()
    }

    /// How long a reply is waited for.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> RedisResult<()> {
        self.0.set_read_timeout(timeout)
    }

    /// For listening to channels.
    pub fn as_pubsub(&mut self) -> PubSub<'_> {
        self.0.as_pubsub()
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.0.req_packed_command(cmd)
    }

    fn req_packed_commands(
        &mut self,
        cmd: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        self.0.send_packed_command(cmd)?;
        let mut replies = Vec::with_capacity(count);
        let (mut refused, mut interrupted) = (None, None);
        for n in 0..offset + count {
            match self.0.recv_response() {
                // Of a transaction that was begun, and of its commands as they are queued.
                Ok(Value::ServerError(error)) if n < offset => {
                    refused = refused.or(Some(error));
                }
                Ok(_) if n < offset => {}
                Ok(reply) => replies.push(reply),
                // The link stands, and redis-rs passes over this reply when it comes.
                Err(error) if error::is_interrupted(&error) => interrupted = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (interrupted, refused) {
            (Some(error), _) => Err(error),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Ok(replies),
        }
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.0.check_connection()
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }
}

/// The link's error, if there is one; what the server had to say does not matter.
///
/// # Errors
/// What the link said.
pub fn ignore_server_error<T>(reply: RedisResult<T>) -> RedisResult<()> {
    match reply {
        Err(error) if !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// For a connection on which nothing else is said for a while. Redis closes those that are idle, if its
/// `timeout` says so, and routers forget them: whoever comes next would have to wait for a new session. A
/// link that has died is noticed by this as well, before somebody needs it.
///
/// # Errors
/// What the link said. What Redis has to say to it does not matter, nor that a signal came before it: the
/// next PING tells.
pub fn ping(connection: &mut Connection) -> Result<(), Error> {
    pinged(redis::cmd("PING").query(connection))
}

/// The same, for a connection that has a PING of its own.
///
/// # Errors
/// What the link said.
pub fn pinged(reply: Result<Value, RedisError>) -> Result<(), Error> {
    match ignore_server_error(reply) {
        Err(error) if error::is_interrupted(&error) => Ok(()),
        reply => reply.map_err(Error::redis("keep the link")),
    }
}

/// Asks a question of a command: see [`AskAgain`].
///
/// # Errors
/// What Redis or the link said.
pub fn ask<T: FromRedisValue>(
    connection: &mut Connection,
    doing: &'static str,
    question: &Cmd,
) -> Result<T, Error> {
    question.query(&mut AskAgain(connection)).map_err(Error::redis(doing))
}

/// Asks several questions at one instant. A Redis whose memory is full refuses every transaction, whatever is in it:
/// there they go one by one, in one write, and what it does for others hardly comes in between.
///
/// # Errors
/// What Redis or the link said.
pub fn ask_at_once<T: FromRedisValue>(
    connection: &mut Connection,
    doing: &'static str,
    questions: &[Cmd],
) -> Result<T, Error> {
    let mut ask = |is_transaction| {
        let mut pipe = redis::pipe();
        if is_transaction {
            pipe.atomic();
        }
        for question in questions {
            pipe.add_command(question.clone());
        }
        pipe.query(&mut AskAgain(connection)).map_err(Error::redis(doing))
    };
    match ask(true) {
        Err(error) if error.code() == Some("OOM") => ask(false),
        answers => answers,
    }
}

/// The milliseconds of the server's clock, by which ids are given.
///
/// # Errors
/// What Redis or the link said.
pub fn now_ms(connection: &mut Connection) -> Result<u64, Error> {
    let (seconds, micros): (u64, u64) = ask(connection, "ask for the time", &redis::cmd("TIME"))?;
    Ok(seconds * 1_000 + micros / 1_000)
}

/// A connection on which a question is asked again if it was interrupted: Linux ends a read that has a
/// timeout with EINTR when a stopped process goes on (Ctrl-Z and `fg`), or a paused machine, and redis-rs
/// passes over the late reply. For what changes nothing. libraryd begins a new session instead, but for
/// INFO, the time, and a PING.
pub struct AskAgain<'a>(pub &'a mut Connection);

impl AskAgain<'_> {
    fn again<T>(
        &mut self,
        ask: impl Fn(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, RedisError> {
        loop {
            match ask(self.0) {
                Err(error) if error::is_interrupted(&error) => {}
                reply => return reply,
            }
        }
    }
}

impl ConnectionLike for AskAgain<'_> {
    fn req_packed_command(&mut self, cmd: &[u8]) -> Result<Value, RedisError> {
        self.again(|connection| connection.req_packed_command(cmd))
    }

    fn req_packed_commands(
        &mut self,
        cmd: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        self.again(|connection| connection.req_packed_commands(cmd, offset, count))
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.0.check_connection()
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }
}
