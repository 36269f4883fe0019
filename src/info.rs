//! What Redis says of itself (INFO).

use std::collections::HashMap;

use crate::error::Error;
use crate::link::Connection;

/// A section of INFO: its fields.
///
/// # Errors
/// What Redis or the link said.
pub fn section(
    connection: &mut Connection,
    section: &str,
) -> Result<HashMap<String, String>, Error> {
    // A path in it may be no text.
    let text: Vec<u8> = redis::cmd("INFO")
        .arg(section)
        .query(connection)
        .map_err(Error::redis("ask Redis what it is"))?;
    let text = String::from_utf8_lossy(&text);
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
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
    /// What Redis says of its memory; none where it says nothing that could be read.
    ///
    /// # Errors
    /// What Redis or the link said.
    pub fn of(connection: &mut Connection) -> Result<Option<Self>, Error> {
        let fields = section(connection, "memory")?;
        let bytes = |name: &str| fields.get(name)?.parse::<u64>().ok();
        // Buffers of replicas and of the append-only file do not count.
        let uncounted = bytes("mem_not_counted_for_evict").unwrap_or(0);
        let memory = bytes("used_memory").zip(bytes("maxmemory"));
        Ok(memory.map(|(used, limit)| Self { used: used.saturating_sub(uncounted), limit }))
    }

    /// Whether Redis takes no command that may need more, such as a new event: what waits is decided all the
    /// same.
    pub fn is_full(self) -> bool {
        self.limit > 0 && self.used > self.limit
    }
}
