//! The lending system of an automated library on Redis Streams.
//!
//! Three programs share this library: `libraryd`, the daemon; `library-req`, the command of staff
//! and scripts; `library-admin`, the operator's. The modules stand in reading order.

// What a user, a book, an event, an outcome are. No I/O.
pub mod event;
pub mod ids;
pub mod outcome;
// How they are named in Redis, and how Redis is spoken to.
pub mod cli;
pub mod connect;
pub mod error;
pub mod keys;
pub mod script;
pub mod stream;
// The two services.
pub mod lending;
pub mod shelving;
// The daemon around them.
pub mod daemon;
pub mod session;
// The operator's command.
pub mod admin;
