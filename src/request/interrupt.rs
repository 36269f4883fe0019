//! Ctrl-C while an outcome is waited for: the event stays queued, and whoever pressed it should
//! know that, and how to ask for it later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::bounded;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

use super::show::say;
use crate::signals;

/// From its making to its end, SIGINT, SIGTERM and SIGHUP (the terminal is closed) say what is to be said
/// before they do what they always do.
pub struct Interrupt {
    words: Arc<Mutex<String>>,
    /// Whether one has come.
    has_come: Arc<AtomicBool>,
    handle: Handle,
    /// Ends when the handle is closed, or with the process.
    thread: Option<JoinHandle<()>>,
}

impl Interrupt {
    /// Begins to listen. `None` if the system has no thread for it, or does not let us: then the signals just
    /// end us.
    pub fn listen(words: String) -> Option<Self> {
        let words = Arc::new(Mutex::new(words));
        let to_say = Arc::clone(&words);
        let (give, given) = bounded::<Signals>(1);
        let listen = move || {
            // The first ends us.
            if let Some(signal) = given.recv().ok().and_then(|mut it| it.forever().next()) {
                say(&to_say.lock().unwrap_or_else(PoisonError::into_inner));
                // A shell that runs us in a loop must see that a signal ended us.
                let _ = emulate_default_handler(signal);
            }
        };
        // First of all: once a signal is caught, only a thread can let it end us.
        let thread = thread::Builder::new().name("signals".into()).spawn(listen).ok()?;
        let heeded = signals::heeded(&[SIGINT, SIGTERM, SIGHUP]);
        let signals = Signals::new(&heeded).ok()?;
        let handle = signals.handle();
        let has_come = Arc::new(AtomicBool::new(false));
        for signal in heeded {
            // Registered behind the thread's handler: once this is set, the thread has been told as well.
            let _ = flag::register(signal, Arc::clone(&has_come));
        }
        give.send(signals).ok()?;
        Some(Self { words, has_come, handle, thread: Some(thread) })
    }

    /// Changes what will be said.
    pub fn set(&self, words: String) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // A signal also ends this thread's wait for a reply. It must not report that as the loss of Redis
        // before the other thread has spoken: it waits for that thread, which ends the process.
        if !self.has_come.load(Ordering::SeqCst) {
            self.handle.close();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
