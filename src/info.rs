//! What Redis says of itself (INFO).

use crate::error::Error;
use crate::link::{Connection, ask};

/// A section of INFO.
#[derive(Debug)]
pub struct Section(String);

impl Section {
    /// Asks for a section.
    ///
    /// # Errors
    /// What Redis or the link said.
    pub fn of(connection: &mut Connection, name: &str) -> Result<Self, Error> {
        // A path in it may be no text.
        let text: Vec<u8> =
            ask(connection, "ask Redis about itself", redis::cmd("INFO").arg(name))?;
        Ok(Self(String::from_utf8_lossy(&text).into_owned()))
    }

    /// The value of a field.
    pub fn get(&self, field: &str) -> Option<&str> {
        let mut fields = self.0.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(name, value)| (name == field).then_some(value.trim()))
    }
}

/// The memory that Redis has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In use, as far as it counts against the limit.
    pub used: u64,
    /// The most that it may use (maxmemory); 0 without a limit.
    pub limit: u64,
}

impl Memory {
    /// What Redis says of its memory; none where this Redis user may not ask, or nothing comes that could be
    /// read.
    ///
    /// # Errors
    /// What Redis or the link said.
    pub fn of(connection: &mut Connection) -> Result<Option<Self>, Error> {
        let section = match Section::of(connection, "memory") {
            Err(error) if error.lacks_permission() => return Ok(None),
            section => section?,
        };
        let bytes = |field: &str| section.get(field)?.parse::<u64>().ok();
        // Buffers of replicas and of the append-only file do not count.
        let uncounted = bytes("mem_not_counted_for_evict").unwrap_or(0);
        let memory = bytes("used_memory").zip(bytes("maxmemory"));
        Ok(memory.map(|(used, limit)| Self { used: used.saturating_sub(uncounted), limit }))
    }

    /// Whether Redis takes no command that may need more, such as a new event: what waits is decided all the
    /// same. True of a primary that throws nothing away (maxmemory-policy noeviction), as a library needs it.
    pub fn is_full(self) -> bool {
        self.limit > 0 && self.used > self.limit
    }
}
