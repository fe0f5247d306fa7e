//! `aril-shim`: keeps one pod. All of it is in [`aril::shim`].

fn main() -> std::process::ExitCode {
    aril::shim::main(std::env::args_os())
}
