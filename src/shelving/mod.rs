//! ShelvingService: the main storage. It hands out books, each to one request, and puts back what
//! it is handed over. It owns the hash of what is out, book -> request that has it, and the hash of its
//! last answers, of which lending's next call reads the one to its own instance.
//!
//! Lending speaks to it by the stream of hand-offs, and by the two calls of [`fetch`]: one hands books
//! out, the other takes back what a request has that is given up. Either could cross a network.

pub mod fetch;
pub mod reader;
pub mod worker;

/// How this service is called in the log.
pub const LOG: &str = "shelving";
