//! Ending blocking reads: those of our own readers, and those of whoever had this instance's name before.
//!
//! A process that hangs, or a link that was given up, leaves a read under way in Redis. What comes
//! next is delivered to it, in this instance's name, and arrives nowhere; it would be found only
//! when it is too old to be on its way ([`super::keeper`]). So the connections of readers have names,
//! after the lock and the session, and who has the lease closes those of other sessions first: what
//! they were given before that is pending, and read before anything new.
//!
//! Where a permission is missing, all this is left out.

use std::fmt::Write as _;

use log::debug;
use redis::{ConnectionLike as _, RedisResult, Value};

use crate::daemon::LOG;
use crate::error::{self, Error};
use crate::link::Connection;
use crate::session::Session;

/// Gives a reader's connection its name.
pub fn mark(session: &Session, connection: &mut Connection) {
    let name = prefix(session) + &session.token;
    let _ = redis::cmd("CLIENT").arg("SETNAME").arg(name).query::<()>(connection);
}

/// Closes the connections of readers of this instance's name in other sessions.
///
/// # Errors
/// The link broke. What Redis refuses is passed over.
pub fn end_others(session: &Session, connection: &mut Connection) -> Result<(), Error> {
    match try_to_end_others(session, connection) {
        Ok(0) => Ok(()),
        Ok(ended) => {
            debug!(target: LOG, "ended {ended} reads that were under way in this instance's name");
            Ok(())
        }
        Err(error) if error.is_io_error() => {
            Err(Error::redis("end reads of an earlier session")(error))
        }
        Err(error) => {
            debug!(target: LOG, "cannot end reads of an earlier session: {error}");
            // The lock is watched still: the next transaction on this connection would come to nothing.
            let _ = redis::cmd("UNWATCH").query::<()>(connection);
            Ok(())
        }
    }
}

fn try_to_end_others(session: &Session, connection: &mut Connection) -> RedisResult<usize> {
    let lock = session.lock();
    // Whoever has the lease by the time that this arrives is not to lose its readers (I7).
    redis::cmd("WATCH").arg(lock).query::<()>(connection)?;
    let held: Option<Vec<u8>> = redis::cmd("GET").arg(lock).query(connection)?;
    let mut others = Vec::new();
    if held.as_deref() == Some(session.token.as_bytes()) {
        let list: Vec<u8> =
            redis::cmd("CLIENT").arg(&["LIST", "TYPE", "normal"]).query(connection)?;
        let db = connection.get_db();
        others = ids_of_others(&list, db, &prefix(session), &session.token);
    }
    if others.is_empty() {
        redis::cmd("UNWATCH").query::<()>(connection)?;
        return Ok(0);
    }
    let mut pipe = redis::pipe();
    pipe.atomic();
    for id in &others {
        pipe.cmd("CLIENT").arg("KILL").arg("ID").arg(id);
    }
    pipe.query::<Value>(connection)?;
    Ok(others.len())
}

/// Ends the blocking reads on these connections. Where that is not permitted, they end by themselves soon after.
///
/// Redis 7.0 ends itself where a client is unblocked whose command it has put off because writes are paused
/// (CLIENT PAUSE, FAILOVER), as it does with reads of a group. A script is put off as well, for it might
/// write: so behind one, in one transaction, nobody is unblocked during a pause.
///
/// # Errors
/// What the link said: it is not to be used again, for the replies may come later.
pub fn wake(readers: &[u64], control: &mut Connection) -> Result<(), Error> {
    const DOING: &str = "wake the readers";
    if readers.is_empty() {
        return Ok(());
    }
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("EVAL").arg("return 0").arg(0);
    for id in readers {
        pipe.cmd("CLIENT").arg("UNBLOCK").arg(id);
    }
    // Not as a query: that waits for each of the replies, even if the first one did not come in time.
    // MULTI, EVAL and EXEC have one as well.
    let replies = readers.len() + 3;
    control.send_packed_command(&pipe.get_packed_pipeline()).map_err(Error::redis(DOING))?;
    for _ in 0..replies {
        match control.recv_response() {
            // A second signal, say: redis-rs passes over the late reply.
            Err(error) if error::is_interrupted(&error) => {}
            reply => drop(reply.map_err(Error::redis(DOING))?),
        }
    }
    Ok(())
}

/// What the names of this instance's readers begin with. Everything but letters and digits is
/// escaped: a name has no blank in it, and no instance's is the beginning of another's.
fn prefix(session: &Session) -> String {
    let mut prefix = "libraryd:".to_owned();
    for byte in session.lock().bytes() {
        if byte.is_ascii_alphanumeric() {
            prefix.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(prefix, "%{byte:02x}");
        }
    }
    prefix + ":"
}

/// In a list of clients, those on this database with a name of that beginning that goes on
/// otherwise than with this token.
fn ids_of_others(list: &[u8], db: i64, prefix: &str, token: &str) -> Vec<u64> {
    let db = db.to_string();
    let id_of = |line: &str| {
        // The path of a socket can have blanks in it, and stands before what is looked for here.
        let last = |field: &str| line.split(' ').rev().find_map(|part| part.strip_prefix(field));
        let of = last("name=")?.strip_prefix(prefix)?;
        let is_other = of != token && last("db=") == Some(db.as_str());
        let id = line.strip_prefix("id=")?.split(' ').next()?.parse().ok();
        id.filter(|_| is_other)
    };
    String::from_utf8_lossy(list).lines().filter_map(id_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_readers_of_the_same_name_and_database_in_other_sessions_are_found() {
        let list = "\
            id=1 addr=/a/redis.sock:0 fd=8 name=libraryd:a: db=0 cmd=client user=default\n\
            id=2 addr=1.2.3.4:5 fd=9 name=libraryd:a:p:1 age=1 db=0 lib-name=libraryd:a:x\n\
            id=3 addr=1.2.3.4:5 fd=9 name=libraryd:a:p:2 age=1 db=0 user=default\n\
            id=4 addr=1.2.3.4:5 fd=9 name=libraryd:a:p:1 age=1 db=1 user=default\n\
            id=5 addr=1.2.3.4:5 fd=9 name=libraryd:ab:p:1 age=1 db=0 user=default\n\
            id=6 addr=1.2.3.4:5 fd=9 name= age=1 db=0 lib-name=libraryd:a:p:1\n\
            id=7 addr=/a name=libraryd:a:p:1 db=0 /s:0 fd=9 name=other age=1 db=0\n\
            id=x name=libraryd:a:p:1 db=0\n\
            \n\
            name=libraryd:a:p:1 db=0\n";
        assert_eq!(ids_of_others(list.as_bytes(), 0, "libraryd:a:", "p:2"), [1, 2]);
        assert_eq!(ids_of_others(b"\xff\xfe", 0, "libraryd:a:", "p:2"), [0; 0]);
    }
}
