//! The program: hands over to the command line and turns its result into the exit code.

fn main() -> std::process::ExitCode {
    slackwater::cli::main()
}
