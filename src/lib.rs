//! The lending system of an automated library on Redis Streams.
//!
//! Three programs share this library: `libraryd`, the daemon; `library-req`, the command of staff
//! and scripts; `library-admin`, the operator's. The modules stand in reading order.

// What a user, a book, an event, an outcome are. No I/O.
pub mod ids;
pub mod event;
pub mod outcome;
pub mod clock;
pub mod text;
pub mod json;
// How they are named in Redis, how Redis is spoken to, and what the system hands over.
pub mod keys;
pub mod error;
pub mod cli;
pub mod signals;
pub mod terminal;
pub mod link;
pub mod address;
pub mod connect;
pub mod advice;
pub mod script;
pub mod stream;
pub mod lock;
pub mod info;
// The two services, and what their threads share.
pub mod logging;
pub mod settings;
pub mod workload;
pub mod session;
pub mod claim;
pub mod lending;
pub mod shelving;
// The daemon around them.
pub mod daemon;
// The command `library-req`.
pub mod request;
// The operator's command `library-admin`.
pub mod admin;
