//! The daemon. Everything is in the library.

fn main() -> std::process::ExitCode {
    library_lending::daemon::main()
}
