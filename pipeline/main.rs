//! The `longreel` command.

fn main() -> std::process::ExitCode {
    longreel::cli::main()
}
