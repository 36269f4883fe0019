//! The operator's command. Everything is in the library.

fn main() -> std::process::ExitCode {
    library_lending::admin::main()
}
