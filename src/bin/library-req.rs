//! The command of staff and scripts; see `library_lending::request`.
fn main() -> std::process::ExitCode {
    library_lending::request::main()
}
