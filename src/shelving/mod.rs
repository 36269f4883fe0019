//! ShelvingService: the main storage. It hands out books, each to one request, and puts back what
//! it is handed over. It owns one hash, book -> request that has it; nobody else touches that.
//!
//! Lending speaks to it in two ways only: the stream of hand-offs, and [`fetch`]. Either could
//! cross a network.

pub mod fetch;
pub mod reader;
pub mod worker;

/// How this service is called in the log.
pub const LOG: &str = "shelving";
