//! What becomes of signals.

use std::ffi::c_int;
use std::fs;
use std::sync::Arc;

use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

/// Lets a write beyond the limit of a file's size (`ulimit -f`, systemd's `LimitFSIZE=`) fail like one to a
/// full disk: it would end the process without a word.
pub fn outlive_file_limits() {
    // Whether it came, nobody asks: the write tells.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Of these signals those that were not ignored when this process began: `nohup` means it, and so does a
/// script that begins something in the background. To be asked before any of them is watched. Where the
/// system does not tell, all.
pub fn heeded(signals: &[c_int]) -> Vec<c_int> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // Bit 0 stands for signal 1.
    signals.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}
